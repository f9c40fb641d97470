"""Motions: rigid limbs, feet on the floor, walks that go where they say."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.puppet.body import FOOT_RADIUS, INDEX, PARENTS, rest_offsets
from interspatial.models.puppet.motion import HEADINGS, MOTIONS, Motion, act, rotation

T = torch.arange(65) / 16.0  # four seconds: every cycle several times
FEET = [INDEX[name] for name in ("left_ankle", "right_ankle", "left_foot", "right_foot")]
CASES = [(name, *rest) for name in MOTIONS for rest in ((0.3, 0.8, 0.0, 0.85), (-1.4, 1.4, 4.0, 1.08))]
each_motion = pytest.mark.parametrize(("name", "heading", "speed", "phase", "height"), CASES)


def lowest_sole(positions: torch.Tensor, height: float) -> torch.Tensor:
    """Distance of the lower foot's sole from the floor. positions: [F, J, 3] -> [F]"""
    return positions[:, FEET, 1].min(1).values - FOOT_RADIUS * height


@each_motion
def test_limbs_are_rigid(name, heading, speed, phase, height):
    rotations, positions = act(Motion(name, heading, speed, phase), T, (0.4, -0.7), height)
    eye = torch.eye(3).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.transpose(2, 3), eye, atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(rotations.shape[:2]), atol=2e-6, rtol=0)
    bones = (positions[:, 1:] - positions[:, PARENTS[1:]]).norm(dim=-1)
    torch.testing.assert_close(bones, rest_offsets(height)[1:].norm(dim=-1).expand_as(bones), atol=2e-6, rtol=0)


@each_motion
def test_the_lower_foot_stands_on_the_floor(name, heading, speed, phase, height):
    _, positions = act(Motion(name, heading, speed, phase), T, (0.4, -0.7), height)
    sole = lowest_sole(positions, height)
    if name == "jump":
        assert sole.min() > -1e-6 and sole.max() > 0.3 * height
        assert (sole < 1e-6).float().mean() == pytest.approx(0.4, abs=0.06), "40 % of a jump is on the floor"
    else:
        assert sole.abs().max() < 1e-6


def test_a_jump_flies_a_parabola():
    """In the air the sole's height has a constant second difference, that of a flight of 0.48 s to 0.42 m."""
    speed, dt = 1.0, 1 / 200
    t = torch.arange(0.34, 0.78, dt)  # a cycle lasts 0.8 s, its last 60 % are in the air
    _, positions = act(Motion("jump", speed=speed), t.double().float(), (0.0, 0.0))
    bend = lowest_sole(positions, 1.0).double().diff().diff() / dt**2
    assert bend.mean() == pytest.approx(-8 * 0.42 / 0.48**2, rel=0.02)


@pytest.mark.parametrize("word", list(HEADINGS))
def test_a_walk_goes_its_way_at_its_speed(word):
    way = {"toward": (0, 1), "right": (1, 0), "away": (0, -1), "left": (-1, 0)}[word]  # x, z; the camera is at +z
    _, positions = act(Motion("walk", HEADINGS[word], speed=1.2), T, (0.5, -0.2))
    moved = positions[:, 0][:, (0, 2)] - torch.tensor([0.5, -0.2])
    torch.testing.assert_close(moved, 1.2 * T[:, None] * torch.tensor(way, dtype=torch.float32), atol=1e-5, rtol=0)
    rotations, _ = act(Motion("walk", HEADINGS[word]), T, (0.0, 0.0))
    faced = rotations[:, 0, :, 2][:, (0, 2)]
    torch.testing.assert_close(faced, torch.tensor(way, dtype=torch.float32).expand_as(faced), atol=1e-6, rtol=0)


def test_a_walk_swings_legs_in_turn_and_arms_against_them():
    _, positions = act(Motion("walk"), T, (0.0, 0.0))
    ahead = {n: positions[:, INDEX[n], 2] - positions[:, 0, 2] for n in ("left_ankle", "right_ankle", "left_wrist")}
    apart = ahead["left_ankle"] - ahead["right_ankle"]
    assert apart.max() > 0.3 and apart.min() < -0.3
    both = torch.stack([apart, ahead["left_wrist"]])
    assert torch.corrcoef(both)[0, 1] < -0.9


def test_who_stays_in_place_stays_in_place():
    for name in set(MOTIONS) - {"walk"}:
        _, positions = act(Motion(name, 0.7, 1.3, 2.0), T, (0.4, -0.7))
        torch.testing.assert_close(positions[:, 0][:, (0, 2)], torch.tensor([0.4, -0.7]).expand(len(T), 2))


def test_a_turn_takes_two_seconds():
    rotations, _ = act(Motion("turn", heading=0.5), T, (0.0, 0.0))
    expected = rotation("y", 0.5 + math.pi * T)
    torch.testing.assert_close(rotations[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotations_turn_right_handed_about_their_axis(axis):
    angle = torch.tensor(0.3)
    spin = torch.zeros(3)
    spin["xyz".index(axis)] = 0.3
    x, y, z = spin.tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    torch.testing.assert_close(rotation(axis, angle), torch.linalg.matrix_exp(cross))


def test_motions_do_not_depend_on_the_other_frames():
    motion = Motion("dance", 0.2, 1.1, 1.0)
    for whole, part in zip(act(motion, T, (0.0, 0.0)), act(motion, T[5:6], (0.0, 0.0)), strict=True):
        torch.testing.assert_close(whole[5:6], part, atol=1e-6, rtol=0)


def test_an_unknown_motion_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"motion 'moonwalk' is not known\. Accepted: stand, walk, wave, .*dance\."):
        Motion("moonwalk")
