"""Exact optical flow of Puppet World: each visible point is carried by its rigid body into the next frame.

F frames. Flow is in pixels per frame, x to the right and y down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .render import directions, pixel_centres
from .sight import in_sight
from .world import World


def optical_flow(world: World) -> tuple[Tensor, Tensor]:
    """How far each pixel of frame t moves until frame t + 1, and whether what it shows can still be seen there.

    returns: flow [F-1, H, W, 2] pixels, visible [F-1, H, W] bool (in the picture, and nothing nearer covers the point
    at exactly the place it moves to)
    """
    pixel, depth = landing(world)
    visible = in_sight(world.at(slice(1, None)), pixel.flatten(1, 2), depth.flatten(1, 2))
    return pixel - pixel_centres(world.height, world.width), visible.view(depth.shape)


def landing(world: World) -> tuple[Tensor, Tensor]:
    """Where the point behind each pixel of frame t falls in frame t + 1, and how deep. A plate stays where it is.

    returns: pixel [F-1, H, W, 2], depth [F-1, H, W] metres, inf for the sky and the plate
    """
    now = world.hit_points()[:-1]
    later = torch.where(world.hits.primitive[:-1, ..., None] >= 0, _carried(world, now), now)
    pixel, depth = world.camera.at(slice(1, None)).project(later)
    backdrop = world.depth[:-1].isinf()
    behind = _sky_pixels(world) if world.spec.ground == "floor" else pixel_centres(world.height, world.width)
    return torch.where(backdrop[..., None], behind, pixel), torch.where(backdrop, torch.inf, depth)


def _carried(world: World, point: Tensor) -> Tensor:
    """Points on bodies, one frame later. point: [F-1, H, W, 3]"""
    frame = torch.arange(len(point))[:, None, None]
    body = world.hits.primitive[:-1].clamp(min=0)
    if not world.bodies.origin.shape[1]:
        return point
    turn = world.bodies.rotation[1:] @ world.bodies.rotation[:-1].transpose(2, 3)  # F-1 C 3 3
    local = point - world.bodies.origin[:-1][frame, body]
    return (turn[frame, body] @ local[..., None])[..., 0] + world.bodies.origin[1:][frame, body]


def _sky_pixels(world: World) -> Tensor:
    """The sky is infinitely far: only the camera's rotation moves it. returns: [F-1, H, W, 2]"""
    rays = directions(world.camera, world.height, world.width)[:-1]
    ahead = rays @ world.camera.w2c[1:, None, :3, :3].transpose(2, 3)
    K = world.camera.K[1:, None, None]
    scaled = torch.stack([K[..., 0, 0] * ahead[..., 0], K[..., 1, 1] * ahead[..., 1]], -1)
    return scaled / ahead[..., 2:].clamp(min=1e-6) + K[..., :2, 2]
