"""Exact optical flow of Puppet World: each visible point is carried by its rigid body into the next frame.

F frames. Flow is in pixels per frame, x to the right and y down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .render import directions
from .world import World


def optical_flow(world: World) -> tuple[Tensor, Tensor]:
    """Where each pixel of frame t is in frame t + 1, and whether it can still be seen there.

    returns: flow [F-1, H, W, 2] pixels, visible [F-1, H, W] bool (nothing nearer covers the point, and it is in the picture)
    """
    now = world.hit_points()[:-1]
    later = torch.where(world.hits.primitive[:-1, ..., None] >= 0, _carried(world, now), now)
    pixel, depth = world.camera.at(slice(1, None)).project(later)
    y, x = torch.meshgrid(torch.arange(world.height) + 0.5, torch.arange(world.width) + 0.5, indexing="ij")
    flow = pixel - torch.stack([x, y], -1)
    backdrop = world.depth[:-1].isinf()
    turned = _backdrop_flow(world) if world.spec.ground == "floor" else torch.zeros_like(flow)
    flow = torch.where(backdrop[..., None], turned, flow)
    return flow, _visible(world, flow, torch.where(backdrop, torch.inf, depth), x, y)


def _carried(world: World, point: Tensor) -> Tensor:
    """Points on bodies, one frame later. point: [F-1, H, W, 3]"""
    frame = torch.arange(len(point))[:, None, None]
    body = world.hits.primitive[:-1].clamp(min=0)
    if not world.bodies.origin.shape[1]:
        return point
    turn = world.bodies.rotation[1:] @ world.bodies.rotation[:-1].transpose(2, 3)  # F-1 C 3 3
    local = point - world.bodies.origin[:-1][frame, body]
    return (turn[frame, body] @ local[..., None])[..., 0] + world.bodies.origin[1:][frame, body]


def _backdrop_flow(world: World) -> Tensor:
    """The sky is infinitely far: only the camera's rotation moves it. returns: [F-1, H, W, 2]"""
    ahead = directions(world.camera, world.height, world.width)[:-1] @ world.camera.w2c[1:, None, :3, :3].transpose(2, 3)
    K = world.camera.K[1:, None, None]
    pixel = torch.stack([K[..., 0, 0] * ahead[..., 0], K[..., 1, 1] * ahead[..., 1]], -1) / ahead[..., 2:].clamp(min=1e-6) + K[..., :2, 2]
    y, x = torch.meshgrid(torch.arange(world.height) + 0.5, torch.arange(world.width) + 0.5, indexing="ij")
    return pixel - torch.stack([x, y], -1)


def _visible(world: World, flow: Tensor, depth: Tensor, x: Tensor, y: Tensor) -> Tensor:
    column = (x + flow[..., 0]).floor().long()
    row = (y + flow[..., 1]).floor().long()
    inside = (column >= 0) & (column < world.width) & (row >= 0) & (row < world.height)
    frame = torch.arange(len(flow))[:, None, None]
    there = world.depth[1:][frame, row.clamp(0, world.height - 1), column.clamp(0, world.width - 1)]
    same = (there - depth).abs() < 0.03 * depth.clamp(max=20.0) + 0.02
    return inside & (same | (there.isinf() & depth.isinf()))
