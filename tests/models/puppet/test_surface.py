"""Surface points: on the skin, facing outward, the same places of the body in every frame, hidden by what is nearer."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.puppet.body import INDEX, LIMBS, PARTS, limb_axes
from interspatial.models.puppet.camera import Camera
from interspatial.models.puppet.motion import Motion, act
from interspatial.models.puppet.scene import Ball, Puppet, SceneSpec, random_scene
from interspatial.models.puppet.surface import SurfacePoints, surface_points
from interspatial.models.puppet.world import World, pose_scene
from interspatial.tests.models.puppet.solver import look, on_segment

SEEDS = (2, 4, 5, 6, 8)


def limb_ends(world: World, puppet: int, limb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ends and radius of each point's limb, from the pose itself. limb: [S] -> [F, S, 3] twice, [S]"""
    who = world.spec.puppets[puppet]
    rotations, positions = act(who.motion, torch.arange(world.frames) / world.fps, who.start, who.height)
    axis, radius = limb_axes(who.height)
    on = torch.tensor([INDEX[one.joint] for one in LIMBS])[limb]
    start = positions[:, on].double()
    return start, start + (rotations[:, on].double() @ axis[limb].double()[..., None])[..., 0], radius[limb].double()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [24, 256])
def test_points_lie_on_the_skin_and_normals_point_straight_out(seed, count):
    world = pose_scene(random_scene(seed), 5, 32, 32)
    found = surface_points(world, count)
    F, P = world.frames, len(world.spec.puppets)
    assert found.points.shape == found.normals.shape == (F, P, count, 3) and found.visible.shape == (F, P, count)
    unit = torch.ones(F, P, count)
    torch.testing.assert_close(found.normals.norm(dim=-1), unit, atol=1e-5, rtol=0)
    for p in range(P):
        start, tip, radius = limb_ends(world, p, found.limb)
        points = found.points[:, p].double()
        out = points - on_segment(start, tip, points)
        torch.testing.assert_close(out.norm(dim=-1), radius.expand(F, count), atol=1e-5, rtol=0)
        torch.testing.assert_close(out / radius[:, None], found.normals[:, p].double(), atol=1e-3, rtol=0)


def test_the_points_stay_where_they_are_on_the_body():
    world = pose_scene(SceneSpec((Puppet(motion=Motion("dance", phase=1.0)),)), 9, 32, 32)
    found = surface_points(world)
    start, tip, _ = limb_ends(world, 0, found.limb)
    points = found.points[:, 0].double()
    for end in (start, tip):
        apart = (points - end).norm(dim=-1)
        torch.testing.assert_close(apart, apart[:1].expand_as(apart), atol=1e-5, rtol=0)


def test_all_puppets_have_the_same_anatomy():
    """A bigger puppet has the same points, only bigger."""
    people = (Puppet(motion=Motion("stand"), height=1.0), Puppet(motion=Motion("stand"), start=(1.0, 0.0), height=1.05))
    found = surface_points(pose_scene(SceneSpec(people), 1, 32, 32))
    shifted = found.points[0, 1] - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(shifted, 1.05 * found.points[0, 0], atol=1e-4, rtol=0)


def test_every_limb_has_points_by_its_area():
    found = surface_points(pose_scene(SceneSpec(()), 1, 32, 32), 1000)
    share = torch.bincount(found.limb, minlength=len(LIMBS))
    axis, radius = limb_axes()
    area = 2 * torch.pi * radius * axis.norm(dim=1) + 4 * torch.pi * radius**2
    assert share.sum() == 1000 and share.min() >= 1
    torch.testing.assert_close(share / 1000, area / area.sum(), atol=2.5e-3, rtol=0)
    assert [PARTS[p] for p in found.part] == [LIMBS[i].part for i in found.limb]


def test_a_limbs_points_are_spread_evenly_around_it():
    found = surface_points(pose_scene(SceneSpec((Puppet(motion=Motion("stand")),)), 1, 32, 32), 4000)
    for i in range(len(LIMBS)):
        normals = found.normals[0, 0][found.limb == i]
        assert normals.mean(0).norm() < 0.05, LIMBS[i]


@pytest.mark.parametrize("seed", SEEDS)
def test_visible_is_what_the_solver_sees(seed):
    world = pose_scene(random_scene(seed, balls=1), 3, 64, 64, fps=6)
    found = surface_points(world)
    pixel, depth = (x.flatten(1, 2) for x in world.camera.project(found.points))
    facing = ((world.camera.centre[:, None, None] - found.points) * found.normals).sum(-1).flatten(1)
    visible = found.visible.flatten(1)
    for t in range(3):
        first, _ = look(world, t, pixel[t])
        inside = ((pixel[t] >= 0) & (pixel[t] < 64)).all(1)
        hidden = first < depth[t] - 5e-3
        plain = inside & (first >= depth[t] - 5e-4) & (facing[t] > 0.02)
        assert not visible[t][~inside | (facing[t] < 0)].any()
        assert visible[t][hidden].sum() <= 1, "a limb touched by a tenth of a millimetre may be missed in float32"
        assert plain.sum() > 20 and visible[t][plain].all()


def test_a_visible_point_shows_its_own_part():
    """Points inside another limb, at the joints, are never visible: a visible point's ray meets its own part."""
    world = pose_scene(SceneSpec((Puppet(motion=Motion("wave", 0.5)),)), 2, 64, 64)
    found = surface_points(world, 600)
    pixel, _ = world.camera.project(found.points)
    part_of_limb = torch.tensor([PARTS.index(limb.part) for limb in LIMBS])
    for t in range(2):
        _, limb = look(world, t, pixel[t, 0])
        own = part_of_limb[limb.clamp(min=0)] == found.part
        seen = found.visible[t, 0]
        assert 0.1 < seen.float().mean() < 0.5
        assert own[seen].float().mean() > 0.97
        assert own[~seen].float().mean() < 0.9


def test_nobody_is_visible_behind_a_wall_or_a_puppet():
    behind = Puppet(motion=Motion("stand"), start=(0.0, -1.0))
    wall = Ball(radius=1.5, start=(0.0, 2.0), drop=1.5)
    lone = surface_points(pose_scene(SceneSpec((behind,)), 1, 64, 64))
    walled = surface_points(pose_scene(SceneSpec((behind,), (wall,)), 1, 64, 64))
    assert lone.visible.sum() > 50 and not walled.visible.any()
    torch.testing.assert_close(lone.points, walled.points)
    twin = Puppet(motion=Motion("stand"), start=(0.0, 1.0), height=1.08)
    both = surface_points(pose_scene(SceneSpec((behind, twin)), 1, 64, 64))
    assert both.visible[0, 0].sum() < 0.4 * lone.visible.sum()


def test_points_out_of_the_picture_are_not_visible():
    spec = SceneSpec((Puppet(motion=Motion("stand")),), camera=Camera(aim=(0.0, 0.2, 0.0), height=0.2, view=0.4))
    found: SurfacePoints = surface_points(pose_scene(spec, 1, 64, 64))
    seen = {PARTS[p] for p in found.part[found.visible[0, 0]]}
    assert seen and seen <= {"left_shin", "right_shin", "left_foot", "right_foot"}


def test_no_puppets_no_points():
    found = surface_points(pose_scene(random_scene(0, puppets=0, balls=1), 3, 32, 32), 100)
    assert found.points.shape == (3, 0, 100, 3) and found.visible.shape == (3, 0, 100)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=r"23 asked for, at least 24 are needed"):
        surface_points(pose_scene(SceneSpec(()), 1, 32, 32), 23)
