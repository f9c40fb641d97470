"""Puppet Body as a node."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.puppet_body import PuppetBody

    return PuppetBody


@pytest.fixture
def world(comfy):
    from interspatial.models.puppet.direct import directed_scene
    from interspatial.models.puppet.world import pose_scene

    return pose_scene(directed_scene(3, "wave", 2), 5, 32, 48, 12.0)


def test_body_and_camera_of_the_world_as_it_is(node, world):
    body, camera, same, images = node.execute(world).args
    assert same is world and torch.equal(images, world.rgb)
    assert body.points.shape == (2, 5, 256, 3) and body.fps == 12.0 and bool(body.known.all())
    assert torch.equal(body.joints.transpose(0, 1), world.joints)
    assert torch.equal(camera.K, world.camera.K) and (camera.height, camera.width) == (32, 48)


def test_an_edit_is_in_body_world_and_images_alike(node, world):
    body, camera, after, images = node.execute(world, "2", "dance", offset_x=0.25, points=64).args
    assert body.points.shape == (2, 5, 64, 3)
    assert [p.motion.name for p in after.spec.puppets] == ["wave", "dance"]
    assert torch.equal(body.joints[0], world.joints[:, 0])
    assert not torch.equal(body.joints[1], world.joints[:, 1])
    assert torch.equal(images, after.rgb) and not torch.equal(images, world.rgb)
    assert torch.equal(camera.w2c, world.camera.w2c)


def test_one_person_alone(node, world):
    body, _, after, _ = node.execute(world, "1", only_this_person=True).args
    assert body.people == 1 and torch.equal(body.joints[0], world.joints[:, 0]) and len(after.spec.puppets) == 1


def test_a_person_who_is_not_there(node, world):
    with pytest.raises(ValueError, match=r"^Puppet Body: person 3 was chosen and the world has 2\."):
        node.execute(world, "3")


def test_a_world_without_people(node, world):
    from interspatial.models.puppet.scene import SceneSpec
    from interspatial.models.puppet.world import pose_scene

    with pytest.raises(ValueError, match=r"^Puppet Body: .*no puppets"):
        node.execute(pose_scene(SceneSpec(()), 2, 16, 16))


def test_it_can_be_interrupted(node, world):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        node.execute(world, yaw=90.0)
