"""The ray caster: capsules, spheres and a floor, as flat lists of (frame, primitive, pixel) candidates.

F frames   C primitives (limbs and balls)   M candidates, one for each pixel inside a primitive's box on the screen.
A ray is o + s d with d = R^T K^-1 (x, y, 1): s is the depth along the view axis. Along d every dot product that the
capsule needs is linear in the pixel, so a candidate costs a handful of multiply-adds and a square root.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import CameraTrack

NEAR, FAR = 0.05, 60.0


@dataclass(frozen=True)
class Bodies:
    """Rigid primitives over time: a capsule from `origin` along `rotation @ axis` (a sphere where axis is 0).

    rotation: [F, C, 3, 3]    origin: [F, C, 3]    axis: [C, 3]    radius: [C]
    """

    rotation: Tensor
    origin: Tensor
    axis: Tensor
    radius: Tensor

    def at(self, frames: slice) -> Bodies:
        return Bodies(self.rotation[frames], self.origin[frames], self.axis, self.radius)

    @property
    def tip(self) -> Tensor:
        """returns: [F, C, 3]"""
        return self.origin + (self.rotation @ self.axis[None, :, :, None])[..., 0]


@dataclass(frozen=True)
class Hits:
    """What each pixel sees. primitive: [F, H, W] int64, -1 where none    depth: [F, H, W] metres, inf where none"""

    primitive: Tensor
    depth: Tensor


def directions(camera: CameraTrack, height: int, width: int) -> Tensor:
    """World direction of each pixel's ray with unit depth. returns: [F, H, W, 3]"""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    K = camera.K
    cam = torch.stack([(x - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None],
                       (y - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None], torch.ones_like(x).expand(len(K), -1, -1)], -1)  # fmt: skip
    return cam @ camera.w2c[:, None, :3, :3]  # R^T d as a row vector


def cast(bodies: Bodies, camera: CameraTrack, height: int, width: int) -> Hits:
    """The nearest primitive at each pixel centre."""
    F, C = bodies.origin.shape[:2]
    box = _screen_boxes(bodies, camera, height, width)  # [F*C, 4]: x0, y0, columns, rows
    pair, x, y = _candidates(box)
    depth = _intersect(bodies, camera, pair, x + 0.5, y + 0.5)
    pixel = (pair // C) * (height * width) + y * width + x
    zbuffer = torch.full((F * height * width,), float("inf"))
    zbuffer.scatter_reduce_(0, pixel, depth, "amin")
    primitive = torch.full_like(zbuffer, -1, dtype=torch.int64)
    won = (depth == zbuffer[pixel]) & depth.isfinite()
    primitive[pixel[won]] = pair[won] % C
    return Hits(primitive.view(F, height, width), zbuffer.view(F, height, width))


def _screen_boxes(bodies: Bodies, camera: CameraTrack, height: int, width: int) -> Tensor:
    """Pixel boxes that surely contain each capsule. returns: [F*C, 4] int64 (x0, y0, columns, rows)"""
    ends = torch.stack([bodies.origin, bodies.tip], 2)  # F C 2 3
    cam = ends.flatten(1, 2) @ camera.w2c[:, :3, :3].transpose(1, 2) + camera.w2c[:, None, :3, 3]
    cam = cam.view_as(ends)
    radius = bodies.radius[None, :, None]
    closest = (cam[..., 2] - radius).clamp(min=NEAR)
    focal = camera.K[:, None, None, (0, 1), (0, 1)]
    centre = camera.K[:, None, None, :2, 2]
    # a sphere at depth z spans at most (|x| + r) / (z - r): exact enough, never too small
    low = torch.where(cam[..., :2] - radius[..., None] < 0, (cam[..., :2] - radius[..., None]) / closest[..., None],
                      (cam[..., :2] - radius[..., None]) / (cam[..., 2] + radius)[..., None].clamp(min=NEAR))  # fmt: skip
    high = torch.where(cam[..., :2] + radius[..., None] > 0, (cam[..., :2] + radius[..., None]) / closest[..., None],
                       (cam[..., :2] + radius[..., None]) / (cam[..., 2] + radius)[..., None].clamp(min=NEAR))  # fmt: skip
    size = torch.tensor([width, height])
    first = (focal * low + centre).amin(2).floor().clamp(min=0).minimum(size)
    last = (focal * high + centre).amax(2).ceil().clamp(min=0).minimum(size)
    visible = ((cam[..., 2] + radius) > NEAR).any(2)
    span = (last - first).clamp(min=0) * visible[..., None]
    return torch.cat([first, span], -1).flatten(0, 1).long()


def _candidates(box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every pixel of every box. returns: pair index, x, y, each [M] int64"""
    x0, y0, columns, rows = box.unbind(-1)
    count = columns * rows
    pair = torch.repeat_interleave(count)
    start = torch.cumsum(count, 0) - count
    offset = torch.arange(len(pair)) - start[pair]
    row = torch.div(offset, columns[pair], rounding_mode="floor")
    return pair, x0[pair] + offset - row * columns[pair], y0[pair] + row


def _intersect(bodies: Bodies, camera: CameraTrack, pair: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Depth of the first intersection, inf where the ray misses. returns: [M]"""
    F, C = bodies.origin.shape[:2]
    axis = bodies.tip - bodies.origin
    oa = camera.centre[:, None] - bodies.origin
    to_world = camera.w2c[:, None, :3, :3].expand(F, C, 3, 3)  # row i: camera axis i in the world
    K = camera.K
    px = (x - K[:, 0, 2].repeat_interleave(C)[pair]) / K[:, 0, 0].repeat_interleave(C)[pair]
    py = (y - K[:, 1, 2].repeat_interleave(C)[pair]) / K[:, 1, 1].repeat_interleave(C)[pair]

    def along_ray(vector: Tensor) -> Tensor:
        """d . vector for each candidate. vector: [F, C, 3]"""
        a, b, c = (to_world @ vector[..., None])[..., 0].flatten(0, 1).unbind(-1)
        return a[pair] * px + b[pair] * py + c[pair]

    def per_pair(value: Tensor) -> Tensor:
        return value.flatten()[pair]

    dd = px * px + py * py + 1
    axis_d, oa_d = along_ray(axis), along_ray(oa)
    axis2, axis_oa, oa2 = (axis * axis).sum(-1), (axis * oa).sum(-1), (oa * oa).sum(-1)
    r2 = (bodies.radius**2).expand(F, C)
    A = per_pair(axis2) * dd - axis_d * axis_d
    B = per_pair(axis2) * oa_d - per_pair(axis_oa) * axis_d
    D = B * B - A * per_pair(axis2 * oa2 - axis_oa * axis_oa - r2 * axis2)
    s = (-B - D.clamp(min=0).sqrt()) / A.clamp(min=1e-12)
    along = per_pair(axis_oa) + s * axis_d
    on_side = (D > 0) & (along > 0) & (along < per_pair(axis2)) & (A > 1e-9)
    # the round ends: a sphere at the near end of the axis, chosen by where the infinite cylinder was met
    ob = oa - axis
    at_tip = along > 0
    b_cap = torch.where(at_tip, oa_d - axis_d, oa_d)
    c_cap = torch.where(at_tip, per_pair((ob * ob).sum(-1) - r2), per_pair(oa2 - r2))
    D_cap = b_cap * b_cap - dd * c_cap
    s_cap = (-b_cap - D_cap.clamp(min=0).sqrt()) / dd
    on_cap = ~on_side & (D_cap > 0) & ((D > 0) | (A <= 1e-9))
    s = torch.where(on_side, s, s_cap)
    return torch.where((on_side | on_cap) & (s > NEAR), s, float("inf"))
