"""Points on the puppets' skin that stay with the body: what body-surface conditioning is fed with.

P puppets   S points a puppet   F frames
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .body import LIMBS, PARTS, limb_axes
from .world import World


@dataclass(frozen=True)
class SurfacePoints:
    """points, normals: [F, P, S, 3] world metres and unit vectors    visible: [F, P, S] bool    part: [S] index in PARTS"""

    points: Tensor
    normals: Tensor
    visible: Tensor
    part: Tensor


def surface_points(world: World, count: int = 256) -> SurfacePoints:
    """The same `count` anatomical points on every puppet, spread over the limbs by area, followed over time.

    raises: ValueError for fewer points than limbs
    """
    if count < len(LIMBS):
        raise ValueError(f"Puppet surface points: {count} asked for, at least {len(LIMBS)} are needed (one a limb).")
    limb, along, angle, polar = _anatomy(count)
    points, normals = [], []
    for i, puppet in enumerate(world.spec.puppets):
        axis, radius = limb_axes(puppet.height)
        first, second, third = _frames(axis[limb])
        ring = angle.cos()[:, None] * second + angle.sin()[:, None] * third
        normal = polar.cos()[:, None] * ring + polar.sin()[:, None] * first
        local = along[:, None] * axis[limb] + radius[limb, None] * normal
        body = i * len(LIMBS) + limb
        rotation = world.bodies.rotation[:, body]
        points.append((rotation @ local[None, ..., None])[..., 0] + world.bodies.origin[:, body])
        normals.append((rotation @ normal[None, ..., None])[..., 0])
    stacked, turned = torch.stack(points, 1), torch.stack(normals, 1)
    part = torch.tensor([PARTS.index(b.part) for b in LIMBS])[limb]
    return SurfacePoints(stacked, turned, _visible(world, stacked, turned), part)


def _anatomy(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Limb, share along its axis, angle around it and latitude on a cap, of each point; a low-discrepancy spread."""
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


def _frames(axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors along and across each axis. axis: [S, 3]"""
    first = torch.nn.functional.normalize(axis, dim=-1)
    helper = torch.where((first[:, 1].abs() < 0.9)[:, None], torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    second = torch.nn.functional.normalize(torch.linalg.cross(helper, first), dim=-1)
    return first, second, torch.linalg.cross(first, second)


def _visible(world: World, points: Tensor, normals: Tensor) -> Tensor:
    """In the picture, facing the camera, and nothing nearer along the ray."""
    pixel, depth = world.camera.project(points)
    column, row = pixel[..., 0].floor().long(), pixel[..., 1].floor().long()
    inside = (column >= 0) & (column < world.width) & (row >= 0) & (row < world.height) & (depth > 0)
    frame = torch.arange(world.frames)[:, None, None]
    there = world.depth[frame, row.clamp(0, world.height - 1), column.clamp(0, world.width - 1)]
    facing = ((world.camera.centre[:, None, None] - points) * normals).sum(-1) > 0
    return inside & facing & (depth < there + 0.05)
