"""Points in normalised device coordinates (NDC) of a camera: the one frame in which bodies and pixels meet.

P people   T pixel frames   N points. x and y are -1 at the left and top edge of the picture and 1 at the right and
bottom edge (image rows grow downwards, as camera y does). z is the depth, see `DEPTHS`.

Source: ISA4D (2505.15800), interspatial positional encoding. The paper's depth is that of a perspective projection,
which crowds together far away; near and far planes are set by the clip, and a linear depth is the default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import CameraPath

DEPTHS = ("linear", "perspective", "none")
MARGIN = 1.5  # |x|, |y| up to which points are used: a limb that leaves the picture still tells its border
NEAREST = 0.05  # metres; what is nearer to the lens, or behind it, is left out
ROOM = 0.2  # share by which the planes stand off the nearest and the farthest point


@dataclass(frozen=True)
class DepthRange:
    """near, far: metres along the view axis, 0 < near < far"""

    near: float
    far: float


def depth_range(depth: Tensor, usable: Tensor) -> DepthRange:
    """Planes around all points of a clip, a fifth off. depth, usable: [P, T, N]"""
    kept = depth[usable & (depth > NEAREST)]
    if not kept.numel():
        return DepthRange(1.0, 2.0)
    near, far = (1 - ROOM) * float(kept.min()), (1 + ROOM) * float(kept.max())
    return DepthRange(near, far)


def normalised_depth(depth: Tensor, planes: DepthRange, mode: str) -> Tensor:
    """-1 at the near plane, 1 at the far one; 0 everywhere for mode "none". depth: [...] metres -> [...]"""
    n, f = planes.near, planes.far
    if mode == "linear":
        return 2 * (depth - n) / (f - n) - 1
    if mode == "perspective":
        return (f + n) / (f - n) - 2 * f * n / ((f - n) * depth)
    if mode == "none":
        return torch.zeros_like(depth)
    raise ValueError(f"Depth mode {mode!r} is not known. Accepted: {', '.join(DEPTHS)}.")


def ndc(points: Tensor, known: Tensor, camera: CameraPath, mode: str = "linear",
        planes: DepthRange | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """World points as the camera of each frame sees them.

    points: [P, T, N, 3]    known: [P, T, N] bool    planes: of the whole clip, from its points if None
    returns: [P, T, N, 3] with zeros where a point is not usable, and the usable ones [P, T, N] bool: known, in front of
        the camera, and not further than MARGIN off the picture
    """
    safe = torch.where(known[..., None], points, 0.0)
    cam = camera.view(safe)
    depth = cam[..., 2]
    front = known & (depth > NEAREST)
    pixel = (cam @ camera.K.transpose(1, 2))[..., :2] / depth.clamp(min=NEAREST)[..., None]
    xy = 2 * pixel / torch.tensor([camera.width, camera.height]).to(pixel) - 1
    usable = front & (xy.abs() <= MARGIN).all(-1)
    z = normalised_depth(depth.clamp(min=NEAREST), planes or depth_range(depth, front), mode)
    found = torch.cat([xy, z[..., None]], -1)
    return torch.where(usable[..., None], found, 0.0), usable
