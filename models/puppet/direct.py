"""A scene from a few choices, the rest drawn by a seed: what the Puppet Scene node offers."""

from __future__ import annotations

import random
from dataclasses import replace

from .camera import MOVES, Camera
from .choice import check_choice
from .motion import HEADINGS, MOTIONS, Motion
from .scene import COUNT_WORDS, SHIRT_HUES, SPACING, Puppet, SceneSpec, random_scene
from .scene import GROUNDS as SCENE_GROUNDS

ANY = "any"
ACTIONS = (ANY, "walk left", "walk right", "walk toward the camera", "walk away", *(m for m in MOTIONS if m != "walk"))
SHIRTS = (ANY, *SHIRT_HUES)
GROUNDS = (ANY, *SCENE_GROUNDS)
CAMERAS = (*MOVES, ANY)
_HEADING_OF = {"walk left": "left", "walk right": "right", "walk toward the camera": "toward", "walk away": "away"}


def directed_scene(
    seed: int, action: str = ANY, puppets: int = 0, shirt: str = ANY, ground: str = ANY, camera: str = "hold",
    balls: int = 0,
) -> SceneSpec:  # fmt: skip
    """A scene in which all puppets do and wear what was asked for.

    puppets: 1 to 3, 0 for a draw    action, shirt, ground, camera: a choice of the lists above
    raises: ValueError that names the choice which is not known
    """
    check_choice("number of puppets", puppets, (0, *COUNT_WORDS))
    check_choice("action", action, ACTIONS)
    check_choice("shirt", shirt, SHIRTS)
    check_choice("ground", ground, GROUNDS)
    check_choice("camera move", camera, CAMERAS)
    spec = random_scene(seed, puppets or None, balls, None if camera == ANY else camera)
    if action != ANY or shirt != ANY:
        rng = random.Random(seed + 1)
        people = tuple(replace(p, shirt=p.shirt if shirt == ANY else shirt) for p in spec.puppets)
        spec = replace(spec, puppets=people if action == ANY else _acting(people, action, rng))
    if ground != ANY:
        spec = replace(spec, ground=ground)
    if action in ("walk left", "walk right"):
        spec = replace(spec, camera=_walkers_view(spec.camera))
    return spec


def _acting(people: tuple[Puppet, ...], action: str, rng: random.Random) -> tuple[Puppet, ...]:
    """All puppets in the same action; walkers to a side start so that they cross the picture's middle."""
    walking = action in _HEADING_OF
    speed, phase = rng.uniform(1.0, 1.35), rng.uniform(0, 6.283)
    ahead = {"walk left": 0.7, "walk right": -0.7}.get(action, 0.0)
    heading = HEADINGS[_HEADING_OF[action]] if walking else rng.uniform(-0.5, 0.5)
    middle = (len(people) - 1) / 2
    return tuple(
        replace(p, motion=Motion("walk" if walking else action, heading, speed, phase + rng.uniform(-0.4, 0.4)),
                start=(ahead + (i - middle) * SPACING, p.start[1]))
        for i, p in enumerate(people))  # fmt: skip


def _walkers_view(camera: Camera) -> Camera:
    """The view of the prompt language's scenes: walkers cross it, and the tiny checkpoints were trained on it."""
    return replace(camera, distance=5.2, view=4.4)
