"""Suits: six zones that cover every part, told apart by colour whatever the light, and seen where they are worn."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
import torch
from interspatial.models.puppet.body import LIMBS, PARTS
from interspatial.models.puppet.motion import Motion
from interspatial.models.puppet.scene import Puppet, SceneSpec
from interspatial.models.puppet.suit import COLOURS, ZONE_OF_PART, ZONES, draw_suits, zone_of
from interspatial.models.puppet.world import FIRST_LIMB_PART, pose_scene

LIT = [0.56 + 0.035 * i for i in range(15)]  # what `shade` multiplies a colour by, least to most


def test_every_part_has_the_zone_of_its_side():
    for part, zone in zip(PARTS, ZONE_OF_PART, strict=True):
        name = ZONES[zone]
        if part in ("head", "torso"):
            assert name == part
        else:
            assert name.split()[0] == part.split("_")[0]
            assert (name.split()[1] == "leg") == any(word in part for word in ("thigh", "shin", "foot"))
    assert len(ZONES) == 6 and set(ZONE_OF_PART) == set(range(6))
    assert [zone_of(limb) for limb in LIMBS] == [ZONE_OF_PART[PARTS.index(limb.part)] for limb in LIMBS]


def test_no_two_colours_are_near_each_other_in_any_light():
    for a, b in combinations(COLOURS, 2):
        a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        assert (a - b).norm() >= 0.5
        lit = torch.tensor(LIT, dtype=torch.float64)[:, None]
        assert torch.cdist(lit * a, lit * b).min() >= 0.25, (a, b)


def test_suits_of_a_scene_share_no_colour():
    for seed in range(20):
        suits = draw_suits(random.Random(seed), 3)
        assert len({colour for suit in suits for colour in suit}) == 18
        assert suits == draw_suits(random.Random(seed), 3)
    assert draw_suits(random.Random(0), 2) != draw_suits(random.Random(1), 2)


def test_a_suit_is_seen_on_its_zone_and_hides_all_other_clothes():
    suit = draw_suits(random.Random(3), 1)[0]
    striped = Puppet("cyan", "stripes", Motion("dance", 0.4, phase=1.0), suit=suit)
    world = pose_scene(SceneSpec((striped,), ground="plate"), 3, 96, 80)
    part = world.parts - FIRST_LIMB_PART
    inside = (world.alpha[0] == 1) & (part >= 0)
    zone = torch.tensor(ZONE_OF_PART)[part.clamp(min=0)]
    colour = torch.tensor(suit)
    pixel = world.rgb
    light = (pixel[..., None, :] * colour).sum(-1) / colour.square().sum(-1)
    off = (pixel[..., None, :] - light.clamp(min(LIT), max(LIT))[..., None] * colour).norm(dim=-1)
    found = off.argmin(-1)
    for i in range(6):
        here = inside & (zone == i)
        assert here.sum() > 20, ZONES[i]
        assert (found[here] == i).double().mean() > 0.9, ZONES[i]  # the rest are seams: two colours in one pixel
        assert off[here][:, i].median() < 1e-5
    plain = pose_scene(SceneSpec((Puppet("red", motion=striped.motion, suit=suit),), ground="plate"), 3, 96, 80)
    torch.testing.assert_close(plain.rgb, pixel, atol=0, rtol=0)


def test_the_caption_says_suit():
    suit = draw_suits(random.Random(3), 1)[0]
    assert SceneSpec((Puppet("cyan", suit=suit),)).caption().startswith("a puppet in a coloured suit walks toward")


@pytest.mark.parametrize("suit", [COLOURS[:5], (), ((2.0, 0.0, 0.0), *COLOURS[:5]), ((0.5, 0.5), *COLOURS[:5])])
def test_another_number_of_colours_is_refused(suit):
    with pytest.raises(ValueError, match="Accepted: 6 colours of red"):
        Puppet(suit=suit)
