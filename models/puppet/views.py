"""The truth of a Puppet World as pictures and sounds that ComfyUI shows: IMAGE, MASK, AUDIO.

F frames. Images [F, H, W, 3] 0..1, masks [F, H, W] 0..1.
"""

from __future__ import annotations

import colorsys
import math

import torch
from torch import Tensor

from .flow import optical_flow
from .sound import RATE, sound_track
from .world import FIRST_LIMB_PART, World

FASTEST = 6.0  # pixels a frame at 128 pixels width: full strength in the flow picture


def mask(world: World) -> Tensor:
    """Share of each pixel covered by any puppet."""
    return world.alpha.sum(0).clamp(0, 1) if len(world.alpha) else torch.zeros(world.frames, world.height, world.width)


def depth(world: World) -> Tensor:
    """Near is white; inverse depth between 1.5 m and infinity."""
    near = (1.5 / world.depth.clamp(min=1.5)).clamp(0, 1)
    return near[..., None].expand(-1, -1, -1, 3)


def flow(world: World) -> Tensor:
    """Hue is the direction (right is red), saturation the speed; the last frame repeats the one before."""
    if world.frames < 2:
        return torch.ones(world.frames, world.height, world.width, 3)
    moved = optical_flow(world)[0]
    angle = torch.atan2(moved[..., 1], moved[..., 0]) / (2 * math.pi) % 1
    strength = (moved.norm(dim=-1) * 128 / world.width / FASTEST).clamp(0, 1)
    channels = [1 - strength * (1 - ((angle * 6 + shift) % 6 - 3).abs().sub(1).clamp(0, 1)) for shift in (0.0, 4.0, 2.0)]
    picture = torch.stack(channels, -1)
    return torch.cat([picture, picture[-1:]])


def parts(world: World) -> Tensor:
    """One colour a body part; floor dark grey, balls white, the rest black."""
    count = int(world.parts.max()) + 1
    colours = [(0.0, 0.0, 0.0), (0.2, 0.2, 0.2), (1.0, 1.0, 1.0)]
    colours += [colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.75, 0.95) for i in range(max(0, count - FIRST_LIMB_PART))]
    return torch.tensor(colours)[world.parts]


def audio(world: World) -> dict:
    """ComfyUI's AUDIO."""
    return {"waveform": sound_track(world.spec, world.frames / world.fps), "sample_rate": RATE}
