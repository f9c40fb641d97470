"""The truth of a Puppet World as pictures and sounds that ComfyUI shows: IMAGE, MASK, AUDIO.

F frames. Images [F, H, W, 3] 0..1, masks [F, H, W] 0..1.
"""

from __future__ import annotations

import colorsys
import math

import torch
from torch import Tensor

from .body import PARTS
from .flow import landing
from .render import pixel_centres
from .sound import RATE, sound_track
from .world import World

PART_COLOURS = tuple(colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.75, 0.95) for i in range(len(PARTS)))  # golden angle
FASTEST = 6.0  # pixels a frame at 128 pixels width: full strength in the flow picture


def mask(world: World) -> Tensor:
    """Share of each pixel covered by any puppet."""
    return world.alpha.sum(0).clamp(0, 1)


def depth(world: World) -> Tensor:
    """Inverse depth: white at 1.5 m and nearer, half grey at 3 m, black at infinity."""
    near = (1.5 / world.depth.clamp(min=1.5)).clamp(0, 1)
    return near[..., None].repeat(1, 1, 1, 3)  # not a view: other nodes may write into it


def flow(world: World) -> Tensor:
    """Hue is the direction (right is red), saturation the speed; the last frame repeats the one before."""
    if world.frames < 2:
        return torch.ones(world.frames, world.height, world.width, 3)
    moved = landing(world)[0] - pixel_centres(world.height, world.width)
    angle = torch.atan2(moved[..., 1], moved[..., 0]) / (2 * math.pi) % 1
    strength = (moved.norm(dim=-1) * 128 / world.width / FASTEST).clamp(0, 1)
    pure = [((angle * 6 + shift) % 6 - 3).abs().sub(1).clamp(0, 1) for shift in (0.0, 4.0, 2.0)]  # of full saturation
    picture = torch.stack([1 - strength * (1 - channel) for channel in pure], -1)
    return torch.cat([picture, picture[-1:]])


def parts(world: World) -> Tensor:
    """One colour a body part; floor dark grey, balls white, the rest black."""
    colours = [(0.0, 0.0, 0.0), (0.2, 0.2, 0.2), (1.0, 1.0, 1.0)]  # as the codes BACKGROUND, FLOOR, BALL
    return torch.tensor([*colours, *PART_COLOURS])[world.parts]


def audio(world: World) -> dict:
    """ComfyUI's AUDIO: waveform [1, 2, samples] and its rate."""
    return {"waveform": sound_track(world.spec, world.frames / world.fps), "sample_rate": RATE}
