"""The ray caster: capsules and spheres, as flat lists of (frame, primitive, pixel) candidates.

F frames   C primitives (limbs and balls)   M candidates, one for each pixel inside a primitive's box on the screen.
A ray is o + s d with d = R^T K^-1 (x, y, 1): s is the depth along the view axis. Along d every dot product that the
capsule needs is linear in the pixel, so a candidate costs a handful of multiply-adds and a square root.
A primitive that the camera is inside of is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .camera import CameraTrack

NEAR, FAR = 0.05, 60.0  # metres: nothing nearer is drawn, and no floor beyond
PARALLEL = 1e-6  # sin^2 of the angle between ray and axis below which float32 no longer tells them apart


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
    x, y = pixel_centres(height, width).unbind(-1)
    K = camera.K[:, None, None]
    right, down = (x - K[..., 0, 2]) / K[..., 0, 0], (y - K[..., 1, 2]) / K[..., 1, 1]
    return torch.stack([right, down, torch.ones_like(right)], -1) @ camera.w2c[:, None, :3, :3]  # R^T d as a row vector


def rays_at(camera: CameraTrack, frame: Tensor, pixel: Tensor) -> Tensor:
    """World directions of unit depth through single places in the picture. frame: [M]    pixel: [M, 2] -> [M, 3]"""
    K = camera.K[frame]
    right, down = (pixel[:, 0] - K[:, 0, 2]) / K[:, 0, 0], (pixel[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    cam = torch.stack([right, down, torch.ones(len(pixel))], -1)
    return (cam[:, None] @ camera.w2c[frame, :3, :3])[:, 0]


def pixel_centres(height: int, width: int) -> Tensor:
    """x, y of each pixel's centre. returns: [H, W, 2]"""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


def cast(bodies: Bodies, camera: CameraTrack, height: int, width: int) -> Hits:
    """The nearest primitive at each pixel centre."""
    F, C = bodies.origin.shape[:2]
    pair, x, y = candidates(bodies, camera, height, width)
    depth = intersect(bodies, camera, pair, x + 0.5, y + 0.5)
    pixel = (pair // max(C, 1)) * (height * width) + y * width + x
    zbuffer = torch.full((F * height * width,), float("inf"))
    zbuffer.scatter_reduce_(0, pixel, depth, "amin")
    won = (depth == zbuffer[pixel]) & depth.isfinite()
    primitive = torch.full_like(zbuffer, -1, dtype=torch.int64)
    # neighbouring limbs share spheres, so depths can be equal: the last one wins, whatever the number of threads
    primitive.scatter_reduce_(0, pixel[won], pair[won] % max(C, 1), "amax")
    return Hits(primitive.view(F, height, width), zbuffer.view(F, height, width))


def candidates(bodies: Bodies, camera: CameraTrack, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every pixel that a primitive may touch. returns: frame * C + primitive, x, y, each [M] int64"""
    x0, y0, columns, rows = _screen_boxes(bodies, camera, height, width).unbind(-1)
    pair, offset = ragged(columns * rows)
    row = torch.div(offset, columns[pair], rounding_mode="floor")
    return pair, x0[pair] + offset - row * columns[pair], y0[pair] + row


def ragged(count: Tensor) -> tuple[Tensor, Tensor]:
    """Lays runs end to end. count: [G] length of each run -> run, place in the run, each [sum of count] int64"""
    run = torch.repeat_interleave(count)
    return run, torch.arange(len(run)) - (torch.cumsum(count, 0) - count)[run]


def _screen_boxes(bodies: Bodies, camera: CameraTrack, height: int, width: int) -> Tensor:
    """Pixel boxes that surely contain each capsule. returns: [F * C, 4] int64 (x0, y0, columns, rows)"""
    ends = torch.stack([bodies.origin, bodies.tip], 2)  # F C 2 3
    cam = ends.flatten(1, 2) @ camera.w2c[:, :3, :3].transpose(1, 2) + camera.w2c[:, None, :3, 3]
    cam = cam.view_as(ends)
    radius = bodies.radius[None, :, None]
    focal = camera.K[:, None, None, (0, 1), (0, 1)]
    centre = camera.K[:, None, None, :2, 2]
    near, far = cam[..., 2] - radius, cam[..., 2] + radius
    crossing = (near < NEAR).any(2, keepdim=True)
    # a point of the capsule that is in front of the camera spans at most (|x| + r) / (z - r); where the capsule comes
    # nearer than NEAR, that holds only for the whole of it
    closest = torch.where(crossing, NEAR, near)[..., None]
    farthest = torch.where(crossing, far.amax(2, keepdim=True), far).clamp(min=NEAR)[..., None]
    left, right = cam[..., :2] - radius[..., None], cam[..., :2] + radius[..., None]
    low = torch.where(left < 0, left / closest, left / farthest)
    high = torch.where(right > 0, right / closest, right / farthest)
    size = torch.tensor([width, height])
    first = (focal * low + centre).amin(2).floor().clamp(min=0).minimum(size)
    last = (focal * high + centre).amax(2).ceil().clamp(min=0).minimum(size)
    visible = (far > NEAR).any(2)
    span = (last - first).clamp(min=0) * visible[..., None]
    return torch.cat([first, span], -1).flatten(0, 1).long()


def intersect(bodies: Bodies, camera: CameraTrack, pair: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Depth where the ray through x, y (pixels, any fraction) enters a primitive, inf where it misses.

    pair, x, y: [M], pair is frame * C + primitive    returns: [M]
    """
    table = _ray_table(bodies, camera).index_select(1, pair)  # one gather: it is what the time goes into
    fx, fy, cx, cy, axis2, axis_oa, side, tip, root = table[:9].unbind()
    px, py = (x - cx) / fx, (y - cy) / fy
    dd = px * px + py * py + 1
    axis_d, oa_d = (a * px + b * py + c for a, b, c in (table[9:12], table[12:]))  # axis . d and oa . d
    A = axis2 * dd - axis_d * axis_d
    B = axis2 * oa_d - axis_oa * axis_d
    D = B * B - A * side
    s = (-B - D.clamp(min=0).sqrt()) / A.clamp(min=1e-12)
    along = axis_oa + s * axis_d
    parallel = A.le(PARALLEL * axis2 * dd)
    on_side = (D > 0) & (along > 0) & (along < axis2) & ~parallel
    # the round ends: a sphere at the near end of the axis, chosen by where the infinite cylinder was met, or, of a
    # cylinder that is met infinitely far behind, by the way that the axis points
    at_tip = torch.where(parallel, axis_d < 0, along > 0)
    b_cap = torch.where(at_tip, oa_d - axis_d, oa_d)
    c_cap = torch.where(at_tip, tip, root)
    D_cap = b_cap * b_cap - dd * c_cap
    s_cap = (-b_cap - D_cap.clamp(min=0).sqrt()) / dd
    on_cap = ~on_side & (D_cap > 0) & ((D > 0) | parallel)
    s = torch.where(on_side, s, s_cap)
    return torch.where((on_side | on_cap) & (s > NEAR), s, float("inf"))


def _ray_table(bodies: Bodies, camera: CameraTrack) -> Tensor:
    """What `intersect` needs of each frame and primitive, one row a quantity: focal lengths and centre, products of the
    axis and of oa (from the origin to the eye), then both in the camera's axes, where a ray is (px, py, 1).

    returns: [15, F * C]
    """
    F, C = bodies.origin.shape[:2]
    axis, oa = bodies.tip - bodies.origin, camera.centre[:, None] - bodies.origin
    ob, r2 = oa - axis, (bodies.radius**2).expand(F, C)
    axis2, axis_oa, oa2 = (axis * axis).sum(-1), (axis * oa).sum(-1), (oa * oa).sum(-1)
    to_world = camera.w2c[:, None, :3, :3].expand(F, C, 3, 3)  # row i: camera axis i in the world
    seen = [(to_world @ vector[..., None])[..., 0] for vector in (axis, oa)]
    lens = camera.K[:, (0, 1, 0, 1), (0, 1, 2, 2)][:, None].expand(F, C, 4)
    products = [axis2, axis_oa, axis2 * oa2 - axis_oa * axis_oa - r2 * axis2, (ob * ob).sum(-1) - r2, oa2 - r2]
    return torch.cat([lens, torch.stack(products, -1), *seen], -1).flatten(0, 1).t().contiguous()
