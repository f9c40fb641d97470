"""The sound of a scene: every impact of a ball rings once, at the moment it happens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ball import impacts
from .scene import SceneSpec

RATE = 44100  # samples a second


def sound_track(spec: SceneSpec, seconds: float) -> Tensor:
    """Stereo sound; silent where nothing bounces. Small balls ring high and fast ones loud.

    Left and right follow the ball's x in the world, full at 2 m: what a camera that holds still would hear.
    returns: [1, 2, samples] in -1..1, at RATE samples a second
    """
    samples = max(1, round(seconds * RATE))
    track = torch.zeros(2, samples)
    for ball in spec.balls:
        for time, speed in impacts(ball, seconds):
            first = round(time * RATE)
            t = torch.arange(samples - first) / RATE
            ring = (2 * math.pi * (48.0 / ball.radius) * t).sin() * (-t / 0.06).exp() * min(speed / 6.0, 1.0) * 0.5
            side = max(-1.0, min(1.0, (ball.start[0] + ball.velocity[0] * time) / 2.0))
            track[0, first:] += ring * math.sqrt(0.5 - 0.5 * side)
            track[1, first:] += ring * math.sqrt(0.5 + 0.5 * side)
    return track.clamp(-1, 1)[None]
