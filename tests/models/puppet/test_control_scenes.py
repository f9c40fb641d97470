"""Scenes for control: near the camera, overlapping in depth where they should, and never the same for both purposes."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.puppet.control_scenes import (
    HELD_OUT,
    KINDS,
    LENS_HEIGHTS,
    SHARE,
    UNSEEN_HEIGHTS,
    control_scene,
    reference_scene,
)
from interspatial.models.puppet.world import pose_scene

SEEDS = range(40)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_one_scene_and_colours_never_meet(kind):
    specs = [control_scene(kind, seed) for seed in SEEDS]
    assert specs == [control_scene(kind, seed) for seed in SEEDS]
    assert len(set(specs)) == len(SEEDS)
    assert {spec.ground for spec in specs} == {"floor", "plate"}
    for spec in specs:
        colours = torch.tensor([c for puppet in spec.puppets for c in puppet.suit])
        apart = torch.cdist(colours, colours) + torch.eye(len(colours))
        assert apart.min() >= 0.5
    counts = {len(spec.puppets) for spec in specs}
    assert counts == {"single": {1}, "cross": {2}, "orbit": {1, 2}}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_heights_of_the_camera_for_judging_are_never_trained(kind):
    for seed in SEEDS:
        seen, unseen = control_scene(kind, seed), control_scene(kind, HELD_OUT + seed, unseen=True)
        assert LENS_HEIGHTS[0] <= seen.camera.height <= LENS_HEIGHTS[1]
        assert UNSEEN_HEIGHTS[0] <= unseen.camera.height <= UNSEEN_HEIGHTS[1]
    assert LENS_HEIGHTS[1] < UNSEEN_HEIGHTS[0]
    still, moved = control_scene(kind, 3), control_scene(kind, 3, unseen=True)
    assert still.puppets == moved.puppets, "only the camera differs"


def test_a_single_body_fills_its_share_of_the_picture_and_stays_in_it():
    tall, edge = [], 0
    for seed in range(16):
        world = pose_scene(control_scene("single", seed), 4, 48, 48)
        body = world.owners >= 0
        rows = body.any(2).float()
        tall += (rows.sum(1) / 48).tolist()
        edge += int(body[:, (0, -1)].any()) + int(body[:, :, (0, -1)].any())
    tall = torch.tensor(tall)
    assert abs(tall.median() - SHARE) < 0.08
    assert edge <= 1


def overlap(world) -> torch.Tensor:
    """Share of the smaller silhouette that lies behind or before the other, a frame. returns: [F]"""
    alone = [pose_scene(type(world.spec)((p,), camera=world.spec.camera), *world.size, world.fps).owners >= 0
             for p in world.spec.puppets]  # fmt: skip
    both = (alone[0] & alone[1]).sum((1, 2))
    return both / torch.minimum(alone[0].sum((1, 2)), alone[1].sum((1, 2))).clamp(min=1)


def test_crossing_people_overlap_and_either_is_in_front():
    shares, firsts = [], 0
    for seed in range(24):
        world = pose_scene(control_scene("cross", seed), 9, 48, 48)
        shares.append(overlap(world))
        depth = world.joints_image[1][:, :, 0]
        firsts += int(depth[4, 0] < depth[4, 1])
        pelvis = world.joints[:, :, 0][..., (0, 2)]
        assert (pelvis[:, 0] - pelvis[:, 1]).norm(dim=-1).min() > 0.38, "nobody walks through anybody"
    shares = torch.stack(shares)
    assert (shares > 0.02).float().mean() > 0.8
    assert shares.median() > 0.2
    assert 6 <= firsts <= 18


def test_an_orbit_turns():
    for seed in range(6):
        world = pose_scene(control_scene("orbit", seed), 5, 16, 16)
        way = world.camera.w2c[:, 2, :3]
        turned = torch.rad2deg(torch.acos((way[0] * way[-1]).sum().clamp(-1, 1)))
        assert 20 * 0.2 < turned < 60 * 0.3


def test_a_reference_shows_everybody_whole_from_the_front():
    for kind, seed in (("cross", 5), ("orbit", 2), ("single", 1)):
        spec = control_scene(kind, seed)
        shown = reference_scene(spec)
        assert [p.suit for p in shown.puppets] == [p.suit for p in spec.puppets]
        assert [p.height for p in shown.puppets] == [p.height for p in spec.puppets]
        world = pose_scene(shown, 1, 64, 64)
        owners = world.owners[0]
        for i in range(len(spec.puppets)):
            body = owners == i
            assert body.sum() > 0.03 * 64 * 64
            assert not (body[0].any() or body[-1].any() or body[:, 0].any() or body[:, -1].any())
        assert all(abs(p.motion.heading) < 1e-9 for p in shown.puppets)
        assert world.alpha.sum(0).max() <= 1 + 1e-6 and math.isclose(world.camera.centre[0, 0].item(), 0.0)
        assert overlap(world).max() == 0 if len(spec.puppets) == 2 else True


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"kind of control scene 'reference' is not known\. Accepted: single, cross"):
        control_scene("reference", 0)
