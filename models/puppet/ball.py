"""Bouncing balls in closed form: when they meet the floor, and where they are at any time."""

from __future__ import annotations

from torch import Tensor, stack, where

from .scene import Ball

GRAVITY = 9.81  # m/s^2
AT_REST = 0.2  # m/s: slower impacts are neither seen nor heard


def impacts(ball: Ball, seconds: float) -> list[tuple[float, float]]:
    """When the ball meets the floor, and how fast. returns: [(seconds, m/s), ...]"""
    speed = (2 * GRAVITY * max(ball.drop - ball.radius, 1e-3)) ** 0.5
    time, found = speed / GRAVITY, []
    while time < seconds and speed > AT_REST:
        found.append((time, speed))
        speed *= ball.bounce
        time += 2 * speed / GRAVITY
    return found


def ball_path(ball: Ball, t: Tensor) -> Tensor:
    """Centre of a bouncing ball: parabolas between impacts. t: [F] seconds, ascending -> [F, 3] metres"""
    low = ball.radius
    height = ball.drop - 0.5 * GRAVITY * t**2
    for time, speed in impacts(ball, float(t[-1]) + 1e-6 if len(t) else 0.0):
        since = t - time
        up = low + speed * ball.bounce * since - 0.5 * GRAVITY * since**2
        height = where(since >= 0, up, height)
    x = ball.start[0] + ball.velocity[0] * t
    z = ball.start[1] + ball.velocity[1] * t
    return stack([x, height.clamp(min=low), z], -1)
