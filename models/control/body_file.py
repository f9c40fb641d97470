"""Bodies from files: npz and safetensors with positions.

    points    [T, N, 3] or [P, T, N, 3]   points on the skin that stay with the body
    vertices  [T, V, 3] or [P, T, V, 3]   a mesh (SMPL 6890, SMPL-X 10475, any other)
    joints    [T, J, 3] or [P, T, J, 3]   see `joint_orders`; alone, or beside points or vertices
    known     [T, N], [P, T, N], [T] or [P, T]   bool, or confidence 0 to 1 (also: visible, confidence)
    part      [N]   index in PARTS, with points
    normals   as points                   faces     [M, 3], of the vertices
    fps       number (also: mocap_framerate, mocap_frame_rate)
    K         [3, 3] or [T, 3, 3]         w2c       [4, 4] or [T, 4, 4]; height, width in pixels

P people   T frames   N points   V vertices. The first of points, vertices and joints that is there is the skin.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .body import NO_PART, BodyTrack
from .camera import CameraPath
from .joint_orders import to_smpl
from .skeleton import body_of_joints, filled, why_not
from .vertices import choose, nearest_parts, vertex_normals
from .world_frame import WorldFrame, frame_of

SUFFIXES = (".npz", ".safetensors")
SURE = 0.3  # confidence from which a point counts as known, as ComfyUI's own key point drawing has it
ASSUMED_FPS = 30.0
_ALIASES = {
    "vertices": ("verts",), "joints": ("joints3d", "joints_3d", "keypoints3d", "keypoints_3d"),
    "known": ("visible", "confidence"), "fps": ("mocap_framerate", "mocap_frame_rate", "frame_rate"),
}  # fmt: skip
_OWN = ("points", "part", "normals", "faces", "K", "w2c", "height", "width")
_PARAMETERS = {"poses", "betas", "pose_body", "root_orient", "body_pose", "global_orient"}


@dataclass(frozen=True)
class BodyFile:
    """track, camera: what the file holds    lines: of it in words"""

    track: BodyTrack
    camera: CameraPath | None
    lines: tuple[str, ...]


def read_body(path: str | Path, count: int = 512, unit: str = "auto", up: str = "auto", order: str = "auto",
              fps: float = 0.0) -> BodyFile:  # fmt: skip
    """The people in a file.

    count: points a person, fewer where the file has fewer; unit, up: see `world_frame`; order: see `joint_orders`
    fps: 0 takes the file's
    raises: ValueError that names the file and says what is wrong with it
    """
    path = Path(path)
    try:
        return body_of_arrays(_read(path), count, unit, up, order, fps)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of a file that are known here, by their first names."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"its name ends in {path.suffix or 'nothing'}, accepted: {', '.join(SUFFIXES)}.")
    try:
        found = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        raise ValueError(f"it cannot be read ({error}). Copy it again.") from error
    if not {"points", "vertices", "joints"} & set(found):
        raise ValueError(_nothing(path))
    return found


def _names(present: set[str]) -> dict[str, str]:
    """First names of the arrays of a file that are used, and the names they have there."""
    wanted = {name: (name,) for name in _OWN} | {name: (name, *also) for name, also in _ALIASES.items()}
    return {name: hit for name, all_names in wanted.items()
            if (hit := next((one for one in all_names if one in present), None))}  # fmt: skip


def _read_npz(path: Path) -> dict[str, Tensor]:
    found = {}
    with np.load(path) as file:  # numpy's default refuses arrays of Python objects, whose loading may run code
        for name, own in _names(set(file.files)).items():
            try:
                values = np.asarray(file[own])
            except ValueError as error:
                raise ValueError(f"its array {own} holds Python objects. Accepted: arrays of numbers.") from error
            if values.dtype.kind not in "fiub":
                raise ValueError(f"its array {own} holds no numbers. Accepted: arrays of numbers.")
            kept = values if values.dtype.kind == "b" else values.astype(np.float64)
            found[name] = torch.from_numpy(np.ascontiguousarray(kept))
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(own) for name, own in _names(set(file.keys())).items()}
        about = file.metadata() or {}
    found |= {name: torch.tensor(float(about[own])) for name, own in _names(set(about)).items()
              if name == "fps" and name not in found}  # fmt: skip
    return {name: x if x.dtype == torch.bool else x.double() for name, x in found.items()}


def _nothing(path: Path) -> str:
    present = set(np.load(path).files) if path.suffix == ".npz" else set(safe_open(path, framework="pt").keys())
    accepted = "Accepted: an array points, vertices or joints."
    if present & _PARAMETERS:
        return ("it holds pose parameters of a body model (as AMASS files do) and no positions, and no body model is "
                "shipped here. Run the model that they belong to (SMPL, SMPL-H, SMPL-X) and save its joints or "
                f"vertices. {accepted}")  # fmt: skip
    return f"it holds {', '.join(sorted(present)[:8]) or 'nothing'}. {accepted}"


def body_of_arrays(arrays: dict[str, Tensor], count: int, unit: str, up: str, order: str, fps: float) -> BodyFile:
    """The same from arrays in memory, by the names above. raises: ValueError"""
    source = next(name for name in ("points", "vertices", "joints") if name in arrays)
    place = _clip(arrays[source], source)
    known = _known(arrays.get("known"), place.shape[:3]) & place.isfinite().all(-1)
    if not known.any():
        raise ValueError(f"no point of its {source} is a number that is known. Accepted: tracks with positions.")
    place = torch.where(known[..., None], place, torch.nan)
    joints = place if source == "joints" else _clip(arrays["joints"], "joints") if "joints" in arrays else None
    if joints is not None:
        joints = to_smpl(joints, order)
    frame = frame_of(place, joints, unit, up)
    joints = None if joints is None else frame.points(joints).float()
    rate = fps or float(arrays.get("fps", torch.tensor(0.0)).flatten()[0]) or ASSUMED_FPS
    if source == "joints":
        track = body_of_joints(joints, rate, count)
    else:
        track = _skin(source, frame.points(place).float(), known, arrays, count, rate, joints, frame)
    said = [f"{track.people} {'person' if track.people == 1 else 'people'}, {track.frames} frames at {rate:g} fps, "
            f"{track.points.shape[2]} points a person from {source} [{', '.join(map(str, arrays[source].shape))}]",
            f"read as {up if up != 'auto' else frame.up + ' (found)'}, {1 / frame.scale:g} units a metre"]  # fmt: skip
    if not fps and "fps" not in arrays:
        said.append(f"the file says no frame rate: {ASSUMED_FPS:g} fps are assumed")
    if missing := int((~track.known).sum()):
        said.append(f"{100 * missing / track.known.numel():.2g} % of the points are not known and are left out")
    return BodyFile(track, _camera(arrays, frame, track.frames), tuple(said))


def _skin(source: str, place: Tensor, known: Tensor, arrays: dict[str, Tensor], count: int, fps: float,
          joints: Tensor | None, frame: WorldFrame) -> BodyTrack:  # fmt: skip
    """Points that the file has itself."""
    pick, safe = choose(place.shape[2], count), torch.where(known[..., None], place, 0.0)
    normals = arrays.get("normals")
    if normals is not None:
        normals = frame.directions(_clip(normals, "normals").float())[:, :, pick]
    elif source == "vertices" and "faces" in arrays:
        normals = vertex_normals(safe, arrays["faces"].long())[:, :, pick]
    if joints is not None and (joints.shape[:2] != place.shape[:2] or why_not(joints)):
        raise ValueError(f"its joints of shape {list(joints.shape)} do not belong to its {source} of shape "
                         f"{list(place.shape)}. Accepted: joints of the same people and frames.")  # fmt: skip
    if source == "points" and "part" in arrays:
        part = arrays["part"].long().flatten()[pick].clamp(0, NO_PART)
    elif joints is not None:
        part = nearest_parts(place[:, :, pick], joints)
    else:
        part = torch.full((len(pick),), NO_PART)
    return BodyTrack(safe[:, :, pick], known[:, :, pick], part, fps, normals,
                     None if joints is None else filled(joints))  # fmt: skip


def _clip(x: Tensor, name: str) -> Tensor:
    """[T, N, 3] or [P, T, N, 3] -> [P, T, N, 3] float64"""
    if x.ndim not in (3, 4) or x.shape[-1] != 3 or not x.numel():
        raise ValueError(f"its {name} have the shape {list(x.shape)}. Accepted: [frames, points, 3] and "
                         "[people, frames, points, 3].")  # fmt: skip
    return (x if x.ndim == 4 else x[None]).double()


def _known(given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if given is None:
        return torch.ones(shape, dtype=torch.bool)
    sure = given if given.dtype == torch.bool else given >= SURE
    people, frames, points = shape
    for wanted, full in ((shape, shape), (shape[1:], (1, frames, points)), (shape[:2], (people, frames, 1)),
                         (shape[1:2], (1, frames, 1))):  # fmt: skip
        if tuple(sure.shape) == tuple(wanted):
            return sure.reshape(full).expand(shape)
    raise ValueError(f"its known has the shape {list(given.shape)} beside {list(shape)} points. Accepted: a value for "
                     "each frame or each point, of each person where there are several.")  # fmt: skip


def _camera(arrays: dict[str, Tensor], frame: WorldFrame, frames: int) -> CameraPath | None:
    """The camera of the file; w2c is the identity where only K is there (points in the camera's own frame)."""
    if "K" not in arrays:
        return None
    K = arrays["K"].float()
    K = K.expand(frames, 3, 3) if K.ndim == 2 else K
    w2c = arrays.get("w2c", torch.eye(4)).float()
    w2c = w2c.expand(frames, 4, 4) if w2c.ndim == 2 else w2c
    size = [int(arrays[name].flatten()[0]) if name in arrays else round(2 * float(K[0, i, 2]))
            for name, i in (("height", 1), ("width", 0))]  # fmt: skip
    return frame.camera(K.contiguous(), w2c.contiguous(), *size)
