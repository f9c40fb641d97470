"""Cameras in ComfyUI's own forms, in and out.

WAN_CAMERA_EMBEDDING  tensor [1, 24, F, H, W]: rays of each pixel, four frames to a latent one (see `rays`)
LOAD3D_CAMERA         dict of one camera: three.js (y up, looks along -z); position, target, quaternion, zoom, fov
pose lines            text, a frame a line: time fx fy cx cy 0 0 and a matrix, as RealEstate10K and CameraCtrl have it

T pixel frames   F latent frames. World metres, y up: three.js has the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .camera import CameraPath
from .camera_moves import looking
from .rays import folded, pluecker
from .time_folding import latent_frames

WAN_STRIDE = 4  # pixel frames of a latent frame of Wan
VIEWER_FOV = 35.0  # degrees; what ComfyUI takes where a camera says none
LINE_SHAPE = 16 / 9  # width to height of the pictures that pose lines were made for; other shapes are cut out of it
_FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # between OpenCV's camera axes and those of three.js


def wan_embedding(camera: CameraPath, height: int, width: int) -> Tensor:
    """What ComfyUI's WanCameraEmbedding makes, of any camera. returns: [1, 24, F, height, width]

    raises: ValueError for a length that is not 4 n + 1
    """
    if (camera.frames - 1) % WAN_STRIDE:
        raise ValueError(f"a camera of {camera.frames} frames does not fit Wan's latent frames. Accepted: 4 n + 1, as "
                         f"{camera.frames - (camera.frames - 1) % WAN_STRIDE} or "
                         f"{camera.frames + -(camera.frames - 1) % WAN_STRIDE}.")  # fmt: skip
    rays = folded(pluecker(camera, height, width), latent_frames(camera.frames, WAN_STRIDE), WAN_STRIDE)
    return rays.transpose(0, 1)[None].contiguous()


def to_load3d(camera: CameraPath, distance: float, frame: int = 0) -> dict[str, Any]:
    """One frame as LOAD3D_CAMERA. distance: metres to the point it turns about in the viewer"""
    w2c = camera.w2c[frame]
    centre, forward = camera.centre[frame], w2c[2, :3]
    x, y, z, w = _quaternion(w2c[:3, :3].T @ _FLIP)
    fov = math.degrees(2 * math.atan(camera.height / 2 / float(camera.K[frame, 1, 1])))
    return {"position": _xyz(centre), "target": _xyz(centre + distance * forward), "zoom": 1.0,
            "cameraType": "perspective", "quaternion": {"x": x, "y": y, "z": z, "w": w}, "fov": fov,
            "aspect": camera.width / camera.height}  # fmt: skip


def of_load3d(info: Mapping[str, Any], frames: int, height: int, width: int) -> tuple[CameraPath, Tensor]:
    """A camera at rest, and the point that it turns about [3].

    raises: ValueError for a camera without perspective, or one that stands on its target
    """
    if info.get("cameraType", "perspective") != "perspective":
        raise ValueError("the 3D camera is orthographic. Accepted: perspective; switch it in the 3D node.")
    position, target = (_vector(info.get(name) or {}) for name in ("position", "target"))
    fov, zoom = float(info.get("fov") or VIEWER_FOV), float(info.get("zoom") or 1.0)
    if not (0 < fov < 180 and zoom > 0):
        raise ValueError(f"the 3D camera has a field of view of {fov:g} degrees and a zoom of {zoom:g}. Accepted: 0 to "
                         "180 degrees, and a zoom above 0.")  # fmt: skip
    w2c = torch.eye(4)
    turned = info.get("quaternion")
    if turned and any(float(turned.get(k, 0.0)) for k in "xyzw"):
        w2c[:3, :3] = _FLIP @ _rotation(turned).T
        w2c[:3, 3] = -w2c[:3, :3] @ position
        apart = float((target - position).norm()) or 1.0
        target = position + apart * w2c[2, :3]
    else:
        w2c = looking(position, target)
    focal = zoom * height / (2 * math.tan(math.radians(fov) / 2))
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return CameraPath(K.repeat(frames, 1, 1), w2c.repeat(frames, 1, 1), height, width), target


def of_lines(text: str, height: int, width: int) -> CameraPath:
    """Pose lines. 19 numbers: the matrix is w2c [3, 4]; 23: c2w [4, 4], as ComfyUI's WanCameraEmbedding has it.

    The camera frame of the first line becomes the world, y up. Numbers fx, fy, cx, cy are shares of width and height.
    raises: ValueError that names the line
    """
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            if rows:
                raise ValueError(f"camera line {number} is not made of numbers: {line.strip()[:60]!r}.") from None
            continue  # the address of the video, which stands first in such files
        if row and len(row) not in (19, 23):
            raise ValueError(f"camera line {number} has {len(row)} numbers, accepted: 19 (time, fx, fy, cx, cy, 0, 0 "
                             "and 12 of world to camera) or 23 (16 of camera to world).")  # fmt: skip
        rows += [row] if row else []
    if not rows:
        raise ValueError("the camera lines hold no line of numbers.")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("some camera lines have 19 numbers and some 23. Accepted: all of one kind.")
    table = torch.tensor(rows, dtype=torch.float64)
    pose = table[:, 7:].unflatten(1, (-1, 4))
    if pose.shape[1] == 3:
        pose = torch.cat([pose, torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).double().expand(len(pose), 1, 4)], 1)
        w2c = pose
    else:
        w2c = torch.linalg.inv(pose)
    upright = torch.eye(4).double()
    upright[:3, :3] = _FLIP.double()
    w2c = w2c @ torch.linalg.inv(w2c[:1]) @ upright
    wide, high = max(width, height * LINE_SHAPE), max(height, width / LINE_SHAPE)
    K = torch.zeros(len(table), 3, 3)
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = table[:, 1] * wide, table[:, 2] * high, 1.0
    K[:, 0, 2], K[:, 1, 2] = table[:, 3] * width, table[:, 4] * height
    return CameraPath(K, w2c.float(), height, width)


def _xyz(v: Tensor) -> dict[str, float]:
    return dict(zip("xyz", (float(one) for one in v), strict=True))


def _vector(info: Mapping[str, Any]) -> Tensor:
    return torch.tensor([float(info.get(k, 0.0)) for k in "xyz"])


def _rotation(quaternion: Mapping[str, Any]) -> Tensor:
    """returns: [3, 3]"""
    x, y, z, w = normalize(torch.tensor([float(quaternion.get(k, 0.0)) for k in "xyzw"]).double(), dim=0).tolist()
    return torch.tensor([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def _quaternion(rotation: Tensor) -> list[float]:
    """x, y, z, w of a rotation: the eigenvector of the largest eigenvalue of Bar-Itzhack's matrix (2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.double().tolist()
    matrix = torch.tensor([[a - e - i, 0, 0, 0], [b + d, e - a - i, 0, 0], [c + g, f + h, i - a - e, 0],
                           [h - f, c - g, d - b, a + e + i]], dtype=torch.float64)  # fmt: skip
    vector = torch.linalg.eigh(matrix, UPLO="L").eigenvectors[:, -1]
    return (vector * (1.0 if vector[3] >= 0 else -1.0)).tolist()
