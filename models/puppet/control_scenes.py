"""Scenes that body and camera control is trained and judged on: people in suits of six colours, near the camera.

Seeds below HELD_OUT are for training, those from HELD_OUT on for judging: no seed is ever both.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from .camera import Camera
from .choice import check_choice
from .motion import HEADINGS, MOTIONS, Motion
from .scene import GROUNDS, Puppet, SceneSpec
from .suit import draw_suits

KINDS = ("single", "cross", "orbit")
HELD_OUT = 1_000_000
MIX = ("single",) * 7 + ("cross",) * 9 + ("orbit",) * 4  # for training: crossings are what is hard
SHARE = 0.7  # of the picture's height that a body fills
TALL = 1.85  # metres, at height 1.0
LENS_HEIGHTS = (1.0, 1.6)  # metres above the floor
UNSEEN_HEIGHTS = (2.2, 2.8)
MEETING = (0.1, 0.4)  # seconds into the clip at which two people pass each other: clips for training are short
CROSSINGS = ("across", "across", "depth", "place")
_IN_PLACE = tuple(name for name in MOTIONS if name != "walk")


def kind_of(seed: int) -> str:
    """What a training seed shows, so that any run of seeds is a mixture."""
    return MIX[seed % len(MIX)]


def control_scene(kind: str, seed: int, unseen: bool = False) -> SceneSpec:
    """A scene of one kind; the same seed is the same scene.

    kind: "single" one puppet in any motion, heading and place; "cross" two who overlap in the picture, one before the
        other, most of the first half second; "orbit" one or two with a camera that goes round them
    seed: below HELD_OUT for training, from HELD_OUT on for judging
    unseen: the camera stands at UNSEEN_HEIGHTS, which it never does otherwise
    raises: ValueError for an unknown kind
    """
    check_choice("kind of control scene", kind, KINDS)
    rng = random.Random(f"{kind} {seed}")
    people = {"single": _single, "cross": _crossing, "orbit": _gathering}[kind](rng)
    suits = draw_suits(rng, len(people))
    people = tuple(replace(one, suit=suit) for one, suit in zip(people, suits, strict=True))
    camera = _camera(rng, people, UNSEEN_HEIGHTS if unseen else LENS_HEIGHTS)
    if kind == "orbit":
        amount = rng.choice((-1, 1)) * rng.uniform(20, 60)
        camera = replace(camera, move="orbit", amount=amount, angle=rng.uniform(-180, 180))
    return SceneSpec(people, ground=rng.choice(GROUNDS), plate=(rng.uniform(0.55, 0.85),) * 3, camera=camera)


def reference_scene(spec: SceneSpec) -> SceneSpec:
    """The people of a scene in the same suits, side by side and facing a camera that holds: what shows who they are."""
    apart, middle = 0.8, (len(spec.puppets) - 1) / 2  # metres: arms hang free of the neighbour's
    people = tuple(replace(p, motion=Motion("stand"), start=((i - middle) * apart, 0.0))
                   for i, p in enumerate(spec.puppets))  # fmt: skip
    tallest = max((p.height for p in people), default=1.0)
    view = max(TALL * tallest / SHARE, apart * len(people) + 0.4)
    camera = Camera(distance=4.0, height=1.3, view=view, aim=(0.0, TALL / 2 * tallest, 0.0))
    return replace(spec, puppets=people, balls=(), camera=camera)


def _camera(rng: random.Random, people: tuple[Puppet, ...], heights: tuple[float, float]) -> Camera:
    """A camera that holds, and sees the tallest at SHARE of the picture."""
    tallest = max(p.height for p in people)
    return Camera(distance=rng.uniform(3.2, 4.5), height=rng.uniform(*heights), view=TALL * tallest / SHARE,
                  aim=(0.0, TALL / 2 * tallest, 0.0))  # fmt: skip


def _puppet(rng: random.Random, motion: Motion, place: tuple[float, float], moment: float = 0.25) -> Puppet:
    """A puppet that is at `place` (x, z in metres) `moment` seconds into the clip."""
    gone = motion.speed * moment if motion.name == "walk" else 0.0
    start = (place[0] - gone * math.sin(motion.heading), place[1] - gone * math.cos(motion.heading))
    return Puppet(motion=motion, start=start, height=rng.uniform(0.9, 1.06))


def _any_motion(rng: random.Random, names: tuple[str, ...] = MOTIONS) -> Motion:
    return Motion(rng.choice(names), rng.uniform(-math.pi, math.pi), rng.uniform(0.8, 1.3), rng.uniform(0, math.tau))


def _single(rng: random.Random) -> tuple[Puppet, ...]:
    return (_puppet(rng, _any_motion(rng), (rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35))),)


def _gathering(rng: random.Random) -> tuple[Puppet, ...]:
    """One person in the middle, or two on opposite sides of it, so that the camera sees each before the other."""
    if rng.random() < 0.5:
        return (_puppet(rng, _any_motion(rng), (rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2))),)
    angle, reach = rng.uniform(0, math.tau), rng.uniform(0.35, 0.5)
    x, z = reach * math.sin(angle), reach * math.cos(angle)
    return tuple(_puppet(rng, _any_motion(rng, _IN_PLACE), place) for place in ((x, z), (-x, -z)))


def _crossing(rng: random.Random) -> tuple[Puppet, ...]:
    """Two people who meet in the picture, at different depths; which of the two is in front is drawn."""
    how, moment = rng.choice(CROSSINGS), rng.uniform(*MEETING)
    x, gap = rng.uniform(-0.15, 0.15), rng.uniform(0.55, 1.0)
    side = rng.uniform(0.0, 0.2) * rng.choice((-1, 1))
    motions = [_any_motion(rng, _IN_PLACE), _any_motion(rng, _IN_PLACE)]
    if how != "place":
        ways = ["left", "right"] if how == "across" else ["toward", "away"]
        rng.shuffle(ways)
        motions = [replace(motion, name="walk", heading=HEADINGS[way], speed=rng.uniform(0.5, 0.9))
                   for motion, way in zip(motions, ways, strict=True)]  # fmt: skip
    if how == "depth":  # they pass within a hand's breadth
        gap, side = rng.uniform(0.0, 0.4), rng.uniform(0.4, 0.48) * rng.choice((-1, 1))
    ends = [(x + side / 2, gap / 2), (x - side / 2, -gap / 2)]
    rng.shuffle(ends)
    return tuple(_puppet(rng, motion, end, moment) for motion, end in zip(motions, ends, strict=True))
