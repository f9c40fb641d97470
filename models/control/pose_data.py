"""Bodies and camera of ComfyUI's own body tracker: MHR_POSE_DATA, from its SAM 3D Body nodes.

P people   T frames   V vertices (18439)   N points   J joints

The value is a dict, as read in ComfyUI's comfy_extras/nodes_sam3d_body.py and comfy_extras/sam3d_body/utils.py (newer
than 0.30.0, where the type does not exist yet): "frames", a list of frames, each a list of people; "faces" [M, 3];
"image_size" (rows, columns). A person is a dict; of it are used "pred_vertices" [V, 3] and "pred_keypoints_3d"
[70, 3], metres around the body with y down, "pred_cam_t" [3], which brings them into the camera's frame, and
"focal_length" in pixels. The principal point is the middle of the picture. The place in the list is the person, as in
ComfyUI's own nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .body import NO_PART, BodyTrack
from .camera import CameraPath
from .joint_orders import to_smpl
from .skeleton import body_of_joints, filled, why_not
from .vertices import choose, nearest_parts, vertex_normals
from .world_frame import WorldFrame

MHR_KEY_POINTS = 70
SKINS = ("mesh", "capsules")
_Person = Mapping[str, Any]


@dataclass(frozen=True)
class TrackedBody:
    """track, camera: in a world whose floor is at the lowest point of the clip    lines: of it in words"""

    track: BodyTrack
    camera: CameraPath
    lines: tuple[str, ...]


def read_pose_data(data: Any, fps: float, count: int = 512, skin: str = "mesh") -> TrackedBody:
    """The people of a tracked clip, and the camera they were seen by. The camera stands still: the tracker knows no
    other.

    fps: of the clip; the data does not say    skin: "mesh" follows vertices, "capsules" clothes the joints
    raises: ValueError that says what the data lacks
    """
    frames = _frames(data)
    people = max(len(frame) for frame in frames)
    if not people:
        raise ValueError("nobody was found in any frame. Accepted: pose data with at least one person.")
    height, width = (int(n) for n in data["image_size"])
    frame = WorldFrame(1.0, "y down")
    meshed = skin == "mesh" and _has_meshes(frames)
    joints = _joints(frames, people)
    place, source = _gathered(frames, people, "pred_vertices") if meshed else joints, "mesh" if meshed else "joints"
    if place is None:
        raise ValueError("its people carry neither vertices nor key points. Accepted: the output of ComfyUI's SAM 3D "
                         "Body nodes.")  # fmt: skip
    known = place.isfinite().all(-1)
    lowest = float(place[known][:, 1].max())
    lift = torch.tensor([0.0, lowest, 0.0])  # y grows downwards there
    joints = None if joints is None else frame.points(joints - lift)
    if meshed:
        track = _mesh(frame.points(place - lift), joints, data.get("faces"), count, fps)
    else:
        track = body_of_joints(joints, fps, count)
    found = [sum(len(f) > p for f in frames) for p in range(people)]
    lines = (f"{people} {'person' if people == 1 else 'people'}, {len(frames)} frames at {fps:g} fps, "
             f"{track.points.shape[2]} points a person from the {source}",
             "found in " + " / ".join(map(str, found)) + f" of {len(frames)} frames")  # fmt: skip
    return TrackedBody(track, _camera(frames, frame, lift, height, width), lines)


def _frames(data: Any) -> list[list[_Person]]:
    if not isinstance(data, Mapping) or not isinstance(data.get("frames"), (list, tuple)) or "image_size" not in data:
        raise ValueError("the pose data has no frames or no image_size. Accepted: MHR_POSE_DATA of ComfyUI's SAM 3D "
                         "Body nodes.")  # fmt: skip
    if not data["frames"]:
        raise ValueError("the pose data has no frames. Accepted: one or more.")
    return [list(frame) for frame in data["frames"]]


def _has_meshes(frames: list[list[_Person]]) -> bool:
    return all(person.get("pred_vertices") is not None for frame in frames for person in frame)


def _gathered(frames: list[list[_Person]], people: int, name: str, first: int | None = None) -> Tensor | None:
    """Positions in the camera's frame, NaN where a person is not in a frame. returns: [P, T, V, 3], y down"""
    shapes = [len(person[name][:first]) for frame in frames for person in frame if person.get(name) is not None]
    if not shapes:
        return None
    found = torch.full((people, len(frames), max(shapes), 3), torch.nan)
    for t, frame in enumerate(frames):
        for p, person in enumerate(frame):
            if person.get(name) is not None:
                away = torch.as_tensor(person["pred_cam_t"]).float().reshape(3)
                found[p, t] = torch.as_tensor(person[name][:first]).float() + away
    return found


def _joints(frames: list[list[_Person]], people: int) -> Tensor | None:
    found = _gathered(frames, people, "pred_keypoints_3d", MHR_KEY_POINTS)
    return None if found is None or found.shape[2] != MHR_KEY_POINTS else to_smpl(found, "MHR 70")


def _mesh(place: Tensor, joints: Tensor | None, faces: Any, count: int, fps: float) -> BodyTrack:
    """Followed vertices. place: [P, T, V, 3], NaN where unknown"""
    known, pick = place.isfinite().all(-1), choose(place.shape[2], count)
    safe = torch.where(known[..., None], place, 0.0)
    normals = None if faces is None else vertex_normals(safe, torch.as_tensor(faces).long())[:, :, pick]
    clothed = joints is not None and why_not(joints) is None
    part = nearest_parts(safe[:, :, pick], joints) if clothed else torch.full((len(pick),), NO_PART)
    return BodyTrack(safe[:, :, pick], known[:, :, pick], part, fps, normals, filled(joints) if clothed else None)


def _camera(frames: list[list[_Person]], frame: WorldFrame, lift: Tensor, height: int, width: int) -> CameraPath:
    """The tracker's camera: the mean focal length of the people of a frame, held where nobody is."""
    focal, last = [], 0.0
    for people in frames:
        lengths = [float(torch.as_tensor(person["focal_length"]).flatten()[0]) for person in people
                   if person.get("focal_length") is not None]  # fmt: skip
        last = sum(lengths) / len(lengths) if lengths else last
        focal.append(last)
    first = next((f for f in focal if f > 0), float((height**2 + width**2) ** 0.5))
    K = torch.tensor([[[f or first, 0.0, width / 2], [0.0, f or first, height / 2], [0.0, 0.0, 1.0]] for f in focal])
    w2c = torch.eye(4).repeat(len(frames), 1, 1)
    w2c[:, :3, 3] = lift
    return frame.camera(K, w2c, height, width)
