"""Another ray caster: float64, one capsule at a time, every root tried. Slow, and shares no line with the renderer."""

from __future__ import annotations

import math

import torch
from interspatial.models.puppet.render import FAR, NEAR
from interspatial.models.puppet.world import World
from torch import Tensor


def first_hits(start: Tensor, tip: Tensor, radius: Tensor, eye: Tensor, rays: Tensor) -> Tensor:
    """Where each ray enters each capsule, as a multiple of the ray; inf where it misses or the eye is inside.

    start, tip: [C, 3]    radius: [C]    eye: [3]    rays: [N, 3]    returns: [C, N]
    """
    start, tip, radius, eye, rays = (x.double() for x in (start, tip, radius, eye, rays))
    found = []
    for a, b, r in zip(start, tip, radius, strict=True):
        roots = [sphere(eye - a, rays, r), sphere(eye - b, rays, r), side(a, b, eye, rays, r)]
        outside = (eye - on_segment(a, b, eye[None])[0]).norm() >= r
        nearest = torch.stack(roots).amin(0)
        found.append(torch.where(outside & (nearest > NEAR), nearest, math.inf))
    return torch.stack(found) if found else torch.full((0, len(rays)), math.inf, dtype=torch.float64)


def sphere(from_centre: Tensor, rays: Tensor, radius: Tensor) -> Tensor:
    return smaller_root((rays * rays).sum(1), rays @ from_centre, from_centre @ from_centre - radius**2)


def side(a: Tensor, b: Tensor, eye: Tensor, rays: Tensor, radius: Tensor) -> Tensor:
    """The cylinder between the two ends: everything is taken apart into along the axis and across it."""
    length = (b - a).norm()
    if length < 1e-9:
        return torch.full((len(rays),), math.inf, dtype=torch.float64)
    axis = (b - a) / length
    across, eye_across = rays - (rays @ axis)[:, None] * axis, (eye - a) - (eye - a) @ axis * axis
    s = smaller_root((across * across).sum(1), across @ eye_across, eye_across @ eye_across - radius**2)
    along = (eye - a) @ axis + s * (rays @ axis)
    return torch.where((along >= 0) & (along <= length), s, math.inf)


def smaller_root(a: Tensor, half_b: Tensor, c: Tensor) -> Tensor:
    """Of a s^2 + 2 half_b s + c = 0; inf where there is none."""
    inside = half_b**2 - a * c
    return torch.where((inside > 0) & (a > 1e-15), (-half_b - inside.clamp(min=0).sqrt()) / a, math.inf)


def on_segment(a: Tensor, b: Tensor, points: Tensor) -> Tensor:
    """The nearest places on the segment a b. a, b: [..., 3]    points: [..., 3] -> [..., 3]"""
    length2 = (b - a).square().sum(-1, keepdim=True).clamp(min=1e-18)
    share = ((points - a) * (b - a)).sum(-1, keepdim=True) / length2
    return a + share.clamp(0, 1) * (b - a)


def eye_and_rays(world: World, frame: int, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """From the inverse of K and w2c. pixel: [N, 2] -> [3], [N, 3] with unit depth"""
    c2w, K = (torch.linalg.inv(m[frame].double()) for m in (world.camera.w2c, world.camera.K))
    homogeneous = torch.cat([pixel.double(), torch.ones(len(pixel), 1, dtype=torch.float64)], 1)
    return c2w[:3, 3], homogeneous @ K.T @ c2w[:3, :3].T


def look(world: World, frame: int, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """What the rays through some places of one frame meet first.

    pixel: [N, 2]    returns: depth [N] with the floor, inf for sky or plate; primitive [N], -1 where no body is hit
    """
    eye, rays = eye_and_rays(world, frame, pixel)
    hits = first_hits(world.bodies.origin[frame], world.bodies.tip[frame], world.bodies.radius, eye, rays)
    nobody = torch.full((1, len(pixel)), math.inf, dtype=torch.float64)
    depth, primitive = torch.cat([hits, nobody]).min(0)
    floor = torch.full_like(depth, math.inf)
    if world.spec.ground == "floor":
        floor = torch.where(rays[:, 1] < 0, -eye[1] / rays[:, 1], math.inf)
        floor = torch.where(floor < FAR, floor, math.inf)
    hit = depth.isfinite()
    return torch.where(hit, depth, floor), torch.where(hit, primitive, -1)
