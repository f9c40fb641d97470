"""Body and camera of a Puppet World: the same points and joints, seen by the same camera."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.control.camera_moves import moved
from interspatial.models.control.from_world import body_of_world, camera_of_world, seen_by
from interspatial.models.puppet.body import PARTS
from interspatial.models.puppet.control_scenes import control_scene
from interspatial.models.puppet.scene import SceneSpec
from interspatial.models.puppet.surface import surface_points
from interspatial.models.puppet.world import FIRST_LIMB_PART, pose_scene


@pytest.mark.parametrize("count", [24, 100])
def test_the_body_is_the_surface_of_every_puppet(count):
    world = pose_scene(control_scene("cross", 4), 5, 40, 48, fps=12.0)
    body, truth = body_of_world(world, count), surface_points(world, count)
    assert body.people == 2 and body.frames == 5 and body.fps == 12.0 and bool(body.known.all())
    for person in range(2):
        assert torch.equal(body.points[person], truth.points[:, person])
        assert torch.equal(body.normals[person], truth.normals[:, person])
        assert torch.equal(body.joints[person], world.joints[:, person])
    assert torch.equal(body.part, truth.part)


def test_visible_points_fall_on_pixels_of_their_own_part():
    world = pose_scene(control_scene("orbit", 1), 3, 96, 64)
    camera, body = camera_of_world(world), body_of_world(world)
    assert (camera.height, camera.width, camera.frames) == (96, 64, 3)
    seen = surface_points(world).visible.transpose(0, 1)
    cam = camera.view(body.points)
    pixel = (cam @ camera.K.transpose(1, 2))[..., :2] / cam[..., 2:]
    _, frame, point = seen.nonzero(as_tuple=True)
    column, row = pixel[seen].long().unbind(-1)
    own = world.parts[frame, row, column] - FIRST_LIMB_PART == body.part[point]
    assert len(own) > 100 and own.double().mean() > 0.85  # the rest fall on the border of two parts
    assert len(PARTS) > body.part.max()


def test_a_scene_without_people_is_refused():
    with pytest.raises(ValueError, match="the scene has no puppets"):
        body_of_world(pose_scene(SceneSpec(()), 2, 16, 16))


def test_another_camera_sees_the_same_people_elsewhere():
    world = pose_scene(control_scene("single", 3), 4, 32, 48)
    path = moved(camera_of_world(world), "zoom", 2.0, world.joints[0, 0, 0], "linear")
    seen = seen_by(world, path.sized(64, 96))
    assert torch.equal(seen.camera.w2c, world.camera.w2c) and torch.equal(seen.joints, world.joints)
    middle, near = (w.joints_image[0][-1, 0] - torch.tensor([24.0, 16.0]) for w in (world, seen))
    torch.testing.assert_close(near, 2 * middle, atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="a camera of 3 frames for a world of 4"):
        seen_by(world, path.at(slice(0, 3)))
