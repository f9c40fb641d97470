"""Zones read from pixels agree with the exact part map, and scenes can be taken apart without posing them again."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.puppet.control_scenes import control_scene
from interspatial.models.puppet.scene import Ball, Puppet, SceneSpec
from interspatial.models.puppet.subset import alone, empty
from interspatial.models.puppet.suit import LIMB_ZONES, ZONES
from interspatial.models.puppet.world import pose_scene
from interspatial.models.puppet.zones import palette_of, places, read


@pytest.mark.parametrize("seed", range(4))
def test_zones_agree_with_the_part_map(seed):
    world = pose_scene(control_scene("cross", seed), 2, 96, 96)
    palette, place = palette_of(world.spec), places(world)
    zone, body = read(world.rgb, palette, place)
    hit = world.hits.primitive
    truth = torch.where(hit >= 0, palette.limb_zone.flatten()[hit.clamp(min=0)], -1)
    whole = (hit >= 0) & (world.alpha.sum(0) == 1)
    assert (zone == truth)[whole].double().mean() > 0.93
    assert (zone[hit < 0] >= 0).double().mean() < 0.03
    assert (body & (hit >= 0)).sum() / (body | (hit >= 0)).sum() > 0.9


def test_a_suited_palette_has_a_zone_for_each_of_each_person():
    palette = palette_of(control_scene("cross", 0))
    assert sorted(palette.names) == sorted(f"{zone} of {person}" for zone in ZONES for person in (1, 2))
    long = {name for name, yes in zip(palette.names, palette.long.tolist(), strict=True) if yes}
    assert long == {f"{ZONES[i]} of {person}" for i in LIMB_ZONES for person in (1, 2)}
    distances = palette.distances(palette.zone_colours)
    assert distances.argmin(1).tolist() == list(range(12)) and distances.diagonal().max() < 1e-3


def test_people_in_the_same_clothes_are_one_zone():
    palette = palette_of(SceneSpec((Puppet("red"), Puppet("red", skin=(0.52, 0.37, 0.27)))))
    assert palette.names == ("shirt of 1 and 2", "skin of 1 and 2", "trousers of 1 and 2")
    assert not palette.long.any()


def test_an_empty_place_shows_nobody():
    spec = SceneSpec((Puppet("red"),), (Ball(),))
    world = pose_scene(spec, 2, 48, 48)
    bare = pose_scene(SceneSpec((), spec.balls), 2, 48, 48)
    torch.testing.assert_close(empty(world).rgb, bare.rgb, atol=0, rtol=0)
    shaded = empty(world, shadows=True).rgb
    assert (shaded - bare.rgb).abs().max() > 0.05 and (shaded <= bare.rgb + 1e-6).all()
    assert len(places(world)) == 2 and len(places(pose_scene(control_scene("single", 0), 1, 16, 16))) in (1, 2)


def test_one_person_alone_is_that_person():
    world = pose_scene(control_scene("cross", 2), 2, 40, 40)
    for person, puppet in enumerate(world.spec.puppets):
        by_itself = pose_scene(SceneSpec((puppet,), camera=world.spec.camera), 2, 40, 40)
        assert torch.equal(alone(world, person).hits.depth, by_itself.hits.depth)
        assert torch.equal(alone(world, person).joints, by_itself.joints)
