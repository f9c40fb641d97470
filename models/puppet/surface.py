"""Points on the puppets' skin that stay with the body: what body-surface conditioning is fed with.

P puppets   S points a puppet   F frames
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .body import LIMBS, PARTS, limb_axes
from .sight import in_sight
from .skin import anatomy, on_skin
from .world import World


@dataclass(frozen=True)
class SurfacePoints:
    """points, normals: [F, P, S, 3] world metres, unit vectors    visible: [F, P, S] bool
    part: [S] index in PARTS    limb: [S] index in LIMBS"""

    points: Tensor
    normals: Tensor
    visible: Tensor
    part: Tensor
    limb: Tensor


def surface_points(world: World, count: int = 256) -> SurfacePoints:
    """The same `count` anatomical points on every puppet, spread over the limbs by area, followed over time.

    Points inside another limb, as at the joints, keep their place but are never visible.
    raises: as `skin`
    """
    points, normals, limb = skin(world, count)
    part = torch.tensor([PARTS.index(one.part) for one in LIMBS])[limb]
    return SurfacePoints(points, normals, _visible(world, points, normals), part, limb)


def skin(world: World, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points of `surface_points` without asking what can be seen: nothing is cast.

    returns: points and normals [F, P, S, 3], index in LIMBS [S]
    raises: ValueError for fewer points than limbs
    """
    places = anatomy(count)
    points = torch.zeros(world.frames, len(world.spec.puppets), count, 3)
    normals = torch.zeros_like(points)
    for i, puppet in enumerate(world.spec.puppets):
        body = slice(i * len(LIMBS), (i + 1) * len(LIMBS))
        posed = world.bodies.rotation[:, body], world.bodies.origin[:, body]
        points[:, i], normals[:, i] = on_skin(places, *limb_axes(puppet.height), *posed)
    return points, normals, places.limb


def _visible(world: World, points: Tensor, normals: Tensor) -> Tensor:
    """In the picture, facing the camera, and nothing nearer along the ray. returns: [F, P, S] bool"""
    pixel, depth = world.camera.project(points)
    facing = ((world.camera.centre[:, None, None] - points) * normals).sum(-1) > 0
    return facing & in_sight(world, pixel.flatten(1, 2), depth.flatten(1, 2)).view(depth.shape)
