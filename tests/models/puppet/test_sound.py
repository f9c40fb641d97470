"""Balls and their sound: closed-form falls, and a ring at the very moment of each impact."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from interspatial.models.puppet.ball import GRAVITY, ball_path, impacts
from interspatial.models.puppet.scene import Ball, SceneSpec, random_scene
from interspatial.models.puppet.sound import RATE, sound_track
from interspatial.models.puppet.views import audio
from interspatial.models.puppet.world import pose_scene

BALLS = [Ball(), Ball(radius=0.1, drop=1.8, bounce=0.7), Ball(radius=0.18, drop=0.8, bounce=0.85), Ball(bounce=0.0),
         Ball(bounce=1.0), Ball(drop=0.1), Ball(drop=0.14)]  # fmt: skip
each_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda b: f"r{b.radius}-drop{b.drop}-bounce{b.bounce}")


def onsets(track: torch.Tensor) -> list[float]:
    """Seconds at which the sound gets louder at once. track: [samples]"""
    loud = track.abs().unfold(0, 300, 1).amax(1)  # the envelope of the next 7 ms
    rise = loud[300:] / loud[:-300].clamp(min=1e-4)
    peaks = (rise > 3).nonzero()[:, 0]
    starts = [int(p) for i, p in enumerate(peaks) if i == 0 or p - peaks[i - 1] > 1]
    return [(start + 600) / RATE for start in starts]


@each_ball
def test_a_ball_falls_and_bounces_by_the_laws_of_motion(ball):
    """Against small time steps: fall, turn round at the floor with a share of the speed."""
    dt, steps = 1e-4, 20_000
    y, v, heights = ball.drop, 0.0, []
    for _ in range(steps):
        heights.append(y)
        y, v = y + v * dt - 0.5 * GRAVITY * dt * dt, v - GRAVITY * dt
        if y < ball.radius and v < 0:
            y, v = ball.radius, -v * ball.bounce if -v > 0.2 else 0.0
    path = ball_path(ball, torch.arange(steps) * dt)
    expected = torch.tensor(heights).clamp(min=ball.radius)
    assert (path[:, 1] - expected).abs().max() < 0.01


@each_ball
def test_a_ball_never_sinks_into_the_floor(ball):
    path = ball_path(ball, torch.arange(200) / 16)
    assert (path[:, 1] >= ball.radius - 1e-6).all()
    assert path.shape == (200, 3) and path.isfinite().all()


def test_a_thrown_ball_moves_evenly_over_the_floor():
    path = ball_path(Ball(start=(0.3, 0.8), velocity=(0.5, -0.25)), torch.arange(9) / 8)
    torch.testing.assert_close(path[:, 0], 0.3 + 0.5 * torch.arange(9) / 8)
    torch.testing.assert_close(path[:, 2], 0.8 - 0.25 * torch.arange(9) / 8)


def test_impacts_in_closed_form():
    ball = Ball(radius=0.1, drop=1.1, bounce=0.8)
    first = math.sqrt(2 * 1.0 / GRAVITY)
    speed = GRAVITY * first
    found = impacts(ball, 10.0)
    assert found[0] == pytest.approx((first, speed))
    assert found[1] == pytest.approx((first * (1 + 2 * 0.8), speed * 0.8))
    assert all(b[0] > a[0] and b[1] < a[1] for a, b in pairwise(found))
    assert found[-1][1] > 0.2 and found[-1][1] * 0.8 <= 0.2, "slower impacts are neither seen nor heard"
    assert impacts(ball, first - 1e-6) == [] and len(impacts(ball, first + 1e-6)) == 1


@each_ball
def test_at_an_impact_the_ball_touches_the_floor(ball):
    times = [time for time, _ in impacts(ball, 2.0)]
    for time in times:
        at = ball_path(ball, torch.tensor([time, 2.0]))[0]
        assert float(at[1]) == pytest.approx(ball.radius, abs=1e-5)


@pytest.mark.parametrize("ball", BALLS[:3], ids=["plain", "small", "big"])
def test_it_rings_when_the_ball_touches_the_floor(ball):
    track = sound_track(SceneSpec((), (ball,)), 2.0)
    assert track.shape == (1, 2, 2 * RATE) and track.abs().max() <= 1
    touches = impacts(ball, 1.99)
    assert (track[0, :, : round(touches[0][0] * RATE)] == 0).all(), "silence before the first touch"
    heard = onsets(track[0].abs().sum(0))
    for time, speed in touches[:2]:
        assert min(abs(time - h) for h in heard) < 0.002, "within 2 ms"
        start = round(time * RATE)
        assert track[0, :, start + 1 : start + 100].abs().max() > 0.05 * min(speed, 6) / 6


def test_the_picture_and_the_sound_agree():
    """The first frame in which the ball goes up again is the first after the onset."""
    spec = SceneSpec((), (Ball(drop=1.3),))
    world = pose_scene(spec, 33, 16, 16, fps=60.0)
    height = world.bodies.origin[:, 0, 1]
    turned = int((height.diff() > 0).nonzero()[0])
    heard = audio(world)
    start = int((heard["waveform"][0].abs().sum(0) > 0).nonzero()[0]) / heard["sample_rate"]
    assert turned / 60 - 1 / 60 <= start <= turned / 60 + 1 / 60
    assert heard["waveform"].shape == (1, 2, round(33 / 60 * RATE))


def test_small_balls_ring_higher_and_fast_ones_louder():
    def spectrum_peak(radius: float) -> float:
        track = sound_track(SceneSpec((), (Ball(radius=radius, drop=1.0, bounce=0.0),)), 1.0)[0].sum(0)
        return float(torch.fft.rfft(track).abs().argmax())

    assert spectrum_peak(0.1) == pytest.approx(480, abs=5) and spectrum_peak(0.2) == pytest.approx(240, abs=5)
    loudness = [sound_track(SceneSpec((), (Ball(drop=d, bounce=0.0),)), 1.0).abs().max() for d in (0.5, 1.5)]
    assert loudness[1] > 1.5 * loudness[0]


@pytest.mark.parametrize(("x", "right"), [(-3.0, 0.0), (0.0, 0.5), (1.0, 0.75), (2.0, 1.0)])
def test_a_ball_is_heard_where_it_is(x, right):
    power = sound_track(SceneSpec((), (Ball(start=(x, 0.0)),)), 1.0)[0].square().sum(1)
    torch.testing.assert_close(power / power.sum(), torch.tensor([1 - right, right]), atol=1e-4, rtol=0)


def test_no_ball_no_sound():
    track = sound_track(random_scene(1, balls=0), 33 / 16)
    assert track.shape == (1, 2, round(33 / 16 * RATE)) and (track == 0).all()
    assert sound_track(SceneSpec(()), 0.0).shape == (1, 2, 1)


def test_many_balls_never_clip_over_one():
    track = sound_track(SceneSpec((), (Ball(drop=3.0, start=(0.0, 0.0)),) * 6), 2.0)
    assert track.abs().max() == 1.0
