"""Whether a point can be seen: one exact ray through the very place where it falls on the picture.

F frames   N points a frame   M points of all frames
"""

from __future__ import annotations

import torch
from torch import Tensor

from .render import NEAR, candidates, intersect, ragged, rays_at
from .shade import floor_depth
from .world import World

# How far behind the first surface a point still counts as seen: what float32 rays miss by where they graze a limb.
THICKNESS, THICKNESS_PER_METRE = 0.001, 0.0002


def in_sight(world: World, pixel: Tensor, depth: Tensor) -> Tensor:
    """Whether points lie in the picture and nothing of the scene is nearer along their rays.

    pixel: [F, N, 2], any fraction    depth: [F, N] metres along the view axis, inf for the sky
    returns: [F, N] bool
    """
    seen = [_seen(world.at(span), pixel[span], depth[span]) for span in world.spans(max(1, pixel.shape[1]))]
    return torch.cat(seen) if seen else torch.zeros(depth.shape, dtype=torch.bool)


def _seen(world: World, pixel: Tensor, depth: Tensor) -> Tensor:
    x, y = pixel.unbind(-1)
    inside = (x >= 0) & (x < world.width) & (y >= 0) & (y < world.height) & (depth > NEAR)
    frame, _ = inside.nonzero(as_tuple=True)
    first = depth_at(world, frame, pixel[inside])
    seen = inside.clone()
    seen[inside] = depth[inside] <= first + THICKNESS + THICKNESS_PER_METRE * first
    return seen


def depth_at(world: World, frame: Tensor, pixel: Tensor) -> Tensor:
    """Depth of what the picture shows at places between the pixel centres, metres; inf where nothing is hit.

    frame: [M]    pixel: [M, 2] inside the picture    returns: [M]
    """
    place = (frame * world.height + pixel[:, 1].long()) * world.width + pixel[:, 0].long()
    order = place.argsort()
    crowd = torch.bincount(place, minlength=world.frames * world.height * world.width)  # points in each pixel
    pair, x, y = candidates(world.bodies, world.camera, world.height, world.width)
    group = (pair // max(len(world.owner), 1) * world.height + y) * world.width + x
    candidate, offset = ragged(crowd[group])
    point = order[(crowd.cumsum(0) - crowd)[group[candidate]] + offset]
    depth = intersect(world.bodies, world.camera, pair[candidate], *pixel[point].unbind(-1))
    nearest = torch.full((len(pixel),), float("inf")).scatter_reduce_(0, point, depth, "amin")
    floor = floor_depth(world.spec, world.camera.centre[frame], rays_at(world.camera, frame, pixel))
    return torch.where(nearest.isfinite(), nearest, floor)
