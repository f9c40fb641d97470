"""Suits of six colours: a puppet whose left and right, head and limbs are told apart by colour alone.

A zone is a group of body parts that wear one colour. RGB 0..1.
"""

from __future__ import annotations

import random
from itertools import product

from .body import PARTS, Limb

Colour = tuple[float, float, float]

ZONES = ("head", "torso", "left arm", "right arm", "left leg", "right leg")
LIMB_ZONES = (2, 3, 4, 5)  # index in ZONES of those with a long axis
# Colours that lie at least 0.5 from each other, and as bright as they can be: none is another one in the shade. Drawing
# freely does not do: in 300 attempts twelve colours 0.5 apart were found once.
COLOURS: tuple[Colour, ...] = tuple(c for c in product((0.0, 0.5, 1.0), repeat=3) if max(c) == 1 and min(c) < 1)


def _zone_of(part: str) -> int:
    if part in ("head", "torso"):
        return ZONES.index(part)
    side, _, piece = part.partition("_")
    return ZONES.index(f"{side} {'leg' if piece in ('thigh', 'shin', 'foot') else 'arm'}")


ZONE_OF_PART: tuple[int, ...] = tuple(_zone_of(part) for part in PARTS)  # index in ZONES of each of PARTS


def zone_of(limb: Limb) -> int:
    """Index in ZONES of the zone that a limb belongs to."""
    return ZONE_OF_PART[PARTS.index(limb.part)]


def check_suit(suit: tuple[Colour, ...] | None) -> None:
    """raises: ValueError for a suit that is not one colour a zone"""
    if suit is None:
        return
    if len(suit) != len(ZONES) or any(len(c) != 3 or not all(0 <= v <= 1 for v in c) for c in suit):
        raise ValueError(f"Puppet World: a suit of {len(suit)} colours is not known. Accepted: {len(ZONES)} colours of "
                         f"red, green and blue from 0 to 1, for {', '.join(ZONES)}.")  # fmt: skip


def draw_suits(rng: random.Random, count: int) -> list[tuple[Colour, ...]]:
    """Suits of saturated colours, no two of which look alike. count: puppets, 3 at most"""
    drawn = rng.sample(COLOURS, count * len(ZONES))
    return [tuple(drawn[first:first + len(ZONES)]) for first in range(0, len(drawn), len(ZONES))]
