"""The truth as ComfyUI shows it: shapes, ranges, and pictures that mean what their tooltips say."""

from __future__ import annotations

import colorsys

import pytest
import torch
from interspatial.models.puppet import views
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.scene import Ball, Puppet, SceneSpec, random_scene
from interspatial.models.puppet.world import BALL, FLOOR, pose_scene


@pytest.mark.parametrize(("frames", "puppets", "balls"), [(1, 1, 0), (3, 2, 1), (3, 0, 1), (1, 0, 0)])
def test_views_are_images_and_masks(frames, puppets, balls):
    world = pose_scene(random_scene(3, puppets, balls), frames, 21, 34)
    for view in (views.depth, views.flow, views.parts):
        picture = view(world)
        assert picture.shape == (frames, 21, 34, 3) and picture.min() >= 0 and picture.max() <= 1
        picture.mul_(0.5)  # other nodes may write into what they are given
    assert views.mask(world).shape == (frames, 21, 34)
    assert (views.mask(world) > 0).any() == (puppets > 0)
    sound = views.audio(world)
    assert sound["waveform"].shape == (1, 2, round(frames / 16 * sound["sample_rate"]))


def test_the_mask_is_all_puppets_together():
    world = pose_scene(random_scene(5, puppets=3, balls=1), 2, 40, 40)
    assert torch.equal(views.mask(world), world.alpha.sum(0))
    assert (views.mask(world) == 0).any() and (views.mask(world) == 1).any()


def test_near_is_white_and_nothing_is_black():
    world = pose_scene(SceneSpec((), (Ball(radius=0.4, start=(0.0, 0.0), drop=0.9),), ground="plate"), 1, 33, 33)
    grey = views.depth(world)[0, ..., 0]
    seen = world.depth[0].isfinite()
    assert (grey[~seen] == 0).all()
    torch.testing.assert_close(grey[seen], 1.5 / world.depth[0][seen])
    assert grey.argmax() == world.depth[0].argmin()


@pytest.mark.parametrize(("velocity", "hue"), [((1.0, 0.0), 0.0), ((-1.0, 0.0), 180.0)])
def test_flow_to_the_right_is_red_and_to_the_left_cyan(velocity, hue):
    ball = Ball(start=(0.0, 0.0), drop=2.0, radius=0.5, velocity=velocity)
    level = Camera(aim=(0.0, 2.0, 0.0), height=2.0)
    world = pose_scene(SceneSpec((), (ball,), ground="plate", camera=level), 2, 64, 64, fps=64)
    picture = views.flow(world)
    assert torch.equal(picture[0], picture[1]), "the last frame repeats"
    assert (picture[0][world.hits.primitive[0] < 0] == 1).all(), "what stands still is white"
    colour = colorsys.rgb_to_hsv(*picture[0, 32, 32].tolist())
    assert abs((colour[0] * 360 - hue + 180) % 360 - 180) < 15 and colour[1] > 0.05 and colour[2] == pytest.approx(1)


def test_flow_downward_is_yellow_green():
    """A quarter of the way round from red to red: 90 degrees."""
    world = pose_scene(SceneSpec((), (Ball(start=(0.0, 0.0), drop=2.5, radius=0.4),), ground="plate",
                                 camera=Camera(height=2.0, aim=(0.0, 2.0, 0.0))), 3, 64, 64, fps=6)  # fmt: skip
    here = world.hits.primitive[1] == 0
    hues = [colorsys.rgb_to_hsv(*colour)[0] * 360 for colour in views.flow(world)[1][here].tolist()]
    assert len(hues) > 50 and all(60 < hue < 120 for hue in hues)


def test_each_part_has_its_own_colour():
    world = pose_scene(SceneSpec((Puppet(),), (Ball(),)), 4, 64, 64)
    picture = views.parts(world).flatten(0, 2)
    codes = world.parts.flatten()
    shown = {code: picture[codes == code].unique(dim=0).tolist() for code in codes.unique().tolist()}
    colours = {code: {tuple(colour) for colour in found} for code, found in shown.items()}
    assert all(len(c) == 1 for c in colours.values())
    assert len(set.union(*colours.values())) == len(colours) > 12
    assert min(colours[FLOOR]) == pytest.approx((0.2, 0.2, 0.2)) and colours[BALL] == {(1.0, 1.0, 1.0)}
