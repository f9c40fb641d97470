"""Scenes for control and what shows who is in them: the pictures, bodies and cameras belong together."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def nodes(comfy):
    from interspatial.nodes import puppet_control

    return puppet_control


@pytest.fixture(scope="module")
def scene(nodes):
    return nodes.PuppetControlScene.execute("cross", 2, 5, size=32).args


def test_scenes_are_of_seeds_that_no_training_has_seen(nodes, scene):
    from interspatial.models.puppet.control_scenes import HELD_OUT, control_scene

    images, world = scene
    assert images.shape == (5, 32, 32, 3) and world.spec == control_scene("cross", HELD_OUT + 2)
    high = nodes.PuppetControlScene.execute("single", 2, 1, unseen_camera=True, size=32).args[1]
    assert 2.2 <= high.spec.camera.height <= 2.8


def test_the_reference_shows_each_point_in_the_suit_of_its_person(nodes, scene):
    """The pixel behind a point that the camera sees has the colour of its zone, up to light."""
    from interspatial.models.control.projection import ndc
    from interspatial.models.control.tokens import front
    from interspatial.models.puppet.suit import ZONE_OF_PART

    picture, body, camera, _, world = nodes.PuppetReference.execute(scene[1], size=128, points=256).args
    assert picture.shape == (1, 128, 128, 3) and body.people == 2 and camera.frames == 1
    place = ((ndc(body.points, body.known, camera)[0][:, 0, :, :2] + 1) / 2 * 128).long().clamp(0, 127)
    suits = torch.tensor([puppet.suit for puppet in world.spec.puppets])
    wanted = suits[:, torch.tensor(ZONE_OF_PART)[body.part]]
    found = picture[0][place[..., 1], place[..., 0]]
    alike = torch.nn.functional.cosine_similarity(found, wanted, dim=-1)[front(body, camera)[:, 0]]
    assert len(alike) > 120 and (alike > 0.97).float().mean() > 0.85


def test_another_camera_sees_background_and_truth(nodes, scene):
    from interspatial.models.control.from_world import camera_of_world
    from interspatial.models.puppet.subset import empty

    world = scene[1]
    moved = camera_of_world(world).at(torch.zeros(5, dtype=torch.int64))
    _, _, _, background, same = nodes.PuppetReference.execute(world, size=32, points=24, camera=moved).args
    assert torch.equal(same.camera.w2c, moved.w2c) and same.spec == world.spec
    assert torch.equal(background, empty(same).rgb)
    with pytest.raises(ValueError, match=r"Puppet Reference: a camera of 3 frames for a world of 5"):
        nodes.PuppetReference.execute(world, camera=moved.at(slice(0, 3)))
