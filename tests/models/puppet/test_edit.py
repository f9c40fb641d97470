"""Edited worlds: the change is there, on the one it was meant for, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.puppet.control_scenes import control_scene
from interspatial.models.puppet.edit import WALKING, Change, changed
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.world import pose_scene


def done(frames: int) -> None:
    """Nobody watches."""


@pytest.fixture
def world():
    people = (Puppet(motion=Motion("wave", 0.3)), Puppet("blue", motion=Motion("walk", 0.5, 1.1), start=(1.0, 0.2)))
    return pose_scene(SceneSpec(people), 5, 32, 32, fps=10.0)


def test_nothing_changed_is_the_same_world(world):
    assert changed(world, Change("2"), done) is world


def test_an_offset_moves_one_and_leaves_the_other(world):
    moved = changed(world, Change("2", offset=(0.3, -0.4)), done)
    assert torch.equal(moved.joints[:, 0], world.joints[:, 0])
    off = torch.tensor([0.3, 0.0, -0.4]).expand_as(world.joints[:, 1])
    torch.testing.assert_close(moved.joints[:, 1] - world.joints[:, 1], off, atol=1e-5, rtol=0)
    assert moved.size == world.size and moved.fps == world.fps


def test_yaw_turns_about_the_start(world):
    turned = changed(world, Change("all", yaw=90.0), done)
    for i, puppet in enumerate(world.spec.puppets):
        start = torch.tensor([puppet.start[0], 0.0, puppet.start[1]])
        x, y, z = (world.joints[:, i] - start).unbind(-1)
        torch.testing.assert_close(turned.joints[:, i] - start, torch.stack([z, y, -x], -1), atol=1e-5, rtol=0)


def test_speed_is_a_factor(world):
    fast = changed(world, Change("2", speed=2.0), done)
    way = [(w.joints[-1, 1, 0] - w.joints[0, 1, 0])[[0, 2]].norm().item() for w in (world, fast)]
    assert way[1] == pytest.approx(2 * way[0], rel=1e-4)
    still = changed(world, Change("1", speed=0.0), done)
    assert (still.joints[:, 0] - still.joints[:1, 0]).abs().max() < 1e-5


def test_a_new_motion_keeps_place_and_facing_and_takes_its_own_pace(world):
    motions = [p.motion for p in changed(world, Change(motion="walk"), done).spec.puppets]
    assert [m.name for m in motions] == ["walk", "walk"]
    assert [m.speed for m in motions] == [WALKING, 1.1] and [m.heading for m in motions] == [0.3, 0.5]
    motions = [p.motion for p in changed(world, Change(motion="jump", speed=0.5), done).spec.puppets]
    assert [m.speed for m in motions] == [0.5, 0.5]


def test_only_leaves_the_others_out():
    world = pose_scene(control_scene("cross", 3), 2, 16, 16)
    alone = changed(world, Change("2", only=True), done)
    assert alone.spec.puppets == world.spec.puppets[1:]
    assert torch.equal(alone.joints[:, 0], world.joints[:, 1])
    assert changed(world, Change("all", only=True), done) is world


def test_who_is_not_there_is_said(world):
    with pytest.raises(ValueError, match=r"person 3 was chosen and the world has 2\. Accepted"):
        changed(world, Change("3"), done)
    with pytest.raises(ValueError, match="motion 'fly' is not known"):
        Change(motion="fly")
    assert math.isclose(Change(yaw=180.0).of(world.spec.puppets[0]).motion.heading, 0.3 + math.pi)
