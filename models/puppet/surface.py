"""Points on the puppets' skin that stay with the body: what body-surface conditioning is fed with.

P puppets   S points a puppet   F frames
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .body import LIMBS, PARTS, limb_axes
from .sight import in_sight
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
    if count < len(LIMBS):
        raise ValueError(f"Puppet surface points: {count} asked for, at least {len(LIMBS)} are needed (one a limb).")
    limb, along, angle, polar = _anatomy(count)
    points = torch.zeros(world.frames, len(world.spec.puppets), count, 3)
    normals = torch.zeros_like(points)
    for i, puppet in enumerate(world.spec.puppets):
        axis, radius = limb_axes(puppet.height)
        first, second, third = _across(axis[limb])
        ring = angle.cos()[:, None] * second + angle.sin()[:, None] * third
        normal = polar.cos()[:, None] * ring + polar.sin()[:, None] * first
        local = along[:, None] * axis[limb] + radius[limb, None] * normal
        body = i * len(LIMBS) + limb
        rotation = world.bodies.rotation[:, body]
        points[:, i] = (rotation @ local[None, ..., None])[..., 0] + world.bodies.origin[:, body]
        normals[:, i] = (rotation @ normal[None, ..., None])[..., 0]
    return points, normals, limb


def _anatomy(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Limb, share along its axis, angle around it and latitude on a cap, of each point; a low-discrepancy spread.

    returns: four of [count]
    """
    axis, radius = limb_axes()
    area = 2 * math.pi * radius * axis.norm(dim=1) + 4 * math.pi * radius**2
    ideal = area / area.sum() * (count - len(LIMBS))
    share = 1 + ideal.floor().long()
    rest = count - int(share.sum())
    share[(ideal - ideal.floor()).argsort(descending=True)[:rest]] += 1
    limb = torch.repeat_interleave(torch.arange(len(LIMBS)), share)
    index = torch.cat([torch.arange(int(n)) for n in share]).float()
    of = share[limb].float()
    height = (index + 0.5) / of  # from the lower pole to the upper one
    length, r = axis.norm(dim=1)[limb], radius[limb]
    position = height * (length + 2 * r) - r
    along = (position / length.clamp(min=1e-9)).clamp(0, 1)
    polar = torch.asin(((position - along * length) / r).clamp(-1, 1))
    return limb, along, index * 2.399963, polar  # the golden angle


def _across(axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors along and across each axis. axis: [S, 3] -> three of [S, 3]"""
    first = normalize(axis, dim=-1)
    upright = (first[:, 1].abs() >= 0.9)[:, None]
    helper = torch.where(upright, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]))
    second = normalize(torch.linalg.cross(helper, first), dim=-1)
    return first, second, torch.linalg.cross(first, second)


def _visible(world: World, points: Tensor, normals: Tensor) -> Tensor:
    """In the picture, facing the camera, and nothing nearer along the ray. returns: [F, P, S] bool"""
    pixel, depth = world.camera.project(points)
    facing = ((world.camera.centre[:, None, None] - points) * normals).sum(-1) > 0
    return facing & in_sight(world, pixel.flatten(1, 2), depth.flatten(1, 2)).view(depth.shape)
