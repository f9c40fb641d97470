"""Where points lie on a capsule body, and where that is when the body moves: the same anatomy for every body.

L limbs   N points. Shared by Puppet World, whose rotations are known, and by skeletons, whose rotations are found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .body import LIMBS, PARTS, limb_axes


@dataclass(frozen=True)
class Anatomy:
    """Places on the skin. limb: [N] index in LIMBS    along: [N] share of the limb's axis
    angle: [N] radians around it    polar: [N] radians of latitude, not 0 on the round ends only"""

    limb: Tensor
    along: Tensor
    angle: Tensor
    polar: Tensor

    @property
    def part(self) -> Tensor:
        """Index in PARTS of each point. returns: [N]"""
        return torch.tensor([PARTS.index(one.part) for one in LIMBS])[self.limb]


def anatomy(count: int) -> Anatomy:
    """`count` places, spread over the limbs by area: the golden angle around each limb, even steps along it.

    raises: ValueError for fewer points than limbs
    """
    if count < len(LIMBS):
        raise ValueError(f"Points on a body: {count} asked for, at least {len(LIMBS)} are needed (one a limb).")
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
    return Anatomy(limb, along, index * 2.399963, polar)  # the golden angle


def on_skin(
    places: Anatomy, axis: Tensor, radius: Tensor, rotation: Tensor, origin: Tensor, stretch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The places on a posed body.

    axis: [L, 3] limb axes at rest    radius: [L] metres    rotation: [..., L, 3, 3]    origin: [..., L, 3] metres
    stretch: [..., L] length of each limb now, relative to rest; 1 if None
    returns: points and normals, each [..., N, 3]
    """
    limb = places.limb
    first, second, third = across(axis[limb])
    ring = places.angle.cos()[:, None] * second + places.angle.sin()[:, None] * third
    normal = (places.polar.cos()[:, None] * ring + places.polar.sin()[:, None] * first).to(rotation)
    along = (places.along[:, None] * axis[limb]).to(rotation)
    if stretch is not None:
        along = along * stretch[..., limb, None]
    turn = rotation[..., limb, :, :]
    local = along + radius[limb, None].to(rotation) * normal
    return (turn @ local[..., None])[..., 0] + origin[..., limb, :], (turn @ normal[..., None])[..., 0]


def across(axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors along and across each axis. axis: [N, 3] -> three of [N, 3]"""
    first = normalize(axis, dim=-1)
    upright = (first[:, 1].abs() >= 0.9)[:, None]
    helper = torch.where(upright, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0]))
    second = normalize(torch.linalg.cross(helper, first), dim=-1)
    return first, second, torch.linalg.cross(first, second)
