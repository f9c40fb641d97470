"""A scene of Puppet World as plain data: who is there, what they wear and do, and the sentence that says so."""

from __future__ import annotations

import colorsys
import random
from collections import Counter
from dataclasses import dataclass, field

from .body import Limb
from .camera import MOVES, Camera
from .choice import check_choice
from .motion import HEADINGS, Motion
from .suit import Colour, check_suit, zone_of

# Degrees, spread so that a judge can tell them apart after a lossy round trip. Skin and hair are orange: no shirt is.
SHIRT_HUES = {"red": 0, "yellow": 54, "green": 125, "cyan": 182, "blue": 225, "purple": 275, "pink": 325}
PATTERNS = ("plain", "stripes", "checks", "dots")
GROUNDS = ("floor", "plate")
COUNT_WORDS = {1: "a puppet", 2: "two puppets", 3: "three puppets"}
PROMPT_ACTIONS = ("left", "right", "wave", "jump", "squat", "dance")  # "left", "right": walking; else in place
VERBS = {
    "stand": ("stands still", "stand still"), "walk": ("walks", "walk"), "wave": ("waves", "wave"),
    "jump": ("jumps", "jump"), "turn": ("turns around", "turn around"), "squat": ("squats", "squat"),
    "dance": ("dances", "dance"),
}  # fmt: skip
_PATTERN_WORDS = {"plain": "", "stripes": "striped ", "checks": "checked ", "dots": "dotted "}
_HEADING_WORDS = {"toward": "toward the camera", "away": "away", "left": "to the left", "right": "to the right"}
_CAMERA_VERBS = {"orbit": "orbits", "dolly": "moves closer", "pan": "pans"}
SKINS: tuple[Colour, ...] = ((0.90, 0.72, 0.58), (0.74, 0.55, 0.42), (0.52, 0.37, 0.27))
HAIRS: tuple[Colour, ...] = ((0.16, 0.11, 0.08), (0.34, 0.20, 0.10), (0.10, 0.10, 0.11))
TROUSERS: Colour = (0.20, 0.20, 0.25)
SPACING = 1.08  # metres between neighbours: silhouettes stay apart in the default camera


@dataclass(frozen=True)
class Garment:
    """A solid texture in the rest pose, so that it sticks to the body.

    colour, second: RGB 0..1    pattern: one of PATTERNS, or "head" (skin and hair)
    """

    colour: Colour
    pattern: str = "plain"
    second: Colour = (0.95, 0.95, 0.95)


@dataclass(frozen=True)
class Puppet:
    """start: x, z of the pelvis at the first frame, metres    height: 1.0 stands 1.85 m tall
    suit: a plain colour for each of suit.ZONES, worn in place of everything else

    raises: ValueError for an unknown shirt or pattern, or a suit of another number of colours
    """

    shirt: str = "red"
    pattern: str = "plain"
    motion: Motion = field(default_factory=lambda: Motion("walk"))
    start: tuple[float, float] = (0.0, 0.0)
    height: float = 1.0
    skin: Colour = SKINS[0]
    hair: Colour = HAIRS[0]
    suit: tuple[Colour, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("shirt", self.shirt, SHIRT_HUES)
        check_choice("pattern", self.pattern, PATTERNS)
        check_suit(self.suit)

    def garments(self) -> dict[str, Garment]:
        """What the puppet wears, by the limbs' `wear`."""
        return {
            "shirt": Garment(shirt_colour(self.shirt), self.pattern),
            "trousers": Garment(TROUSERS),
            "shoes": Garment((0.12, 0.10, 0.10)),
            "skin": Garment(self.skin),
            "head": Garment(self.skin, "head", self.hair),
        }

    def garment(self, limb: Limb) -> Garment:
        """What covers a limb."""
        return Garment(self.suit[zone_of(limb)]) if self.suit else self.garments()[limb.wear]


@dataclass(frozen=True)
class Ball:
    """start: x, z at the first frame, metres    drop: height of the centre then, metres    radius: metres
    velocity: x, z in m/s    bounce: share of the speed kept at an impact"""

    colour: Colour = (0.95, 0.45, 0.10)
    radius: float = 0.14
    start: tuple[float, float] = (0.9, 0.4)
    drop: float = 1.4
    velocity: tuple[float, float] = (0.0, 0.0)
    bounce: float = 0.8


@dataclass(frozen=True)
class SceneSpec:
    """All that a picture of Puppet World depends on, but time and size.

    raises: ValueError for an unknown ground
    """

    puppets: tuple[Puppet, ...]
    balls: tuple[Ball, ...] = ()
    ground: str = "floor"
    plate: Colour = (0.74, 0.77, 0.80)
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        check_choice("ground", self.ground, GROUNDS)

    def caption(self) -> str:
        """The sentence a person would type to get this scene."""
        groups = Counter((_clothes(p), p.motion.name, _heading_words(p.motion)) for p in self.puppets)
        who = " and ".join(_describe(n, *looks) for looks, n in groups.items()) or "nobody"
        where = "on a checkered floor" if self.ground == "floor" else "in front of a plain wall"
        clauses = [f"{who} {where}"]
        if self.balls:
            clauses.append("with a bouncing ball" if len(self.balls) == 1 else "with bouncing balls")
        if self.camera.move != "hold":
            clauses.append(f"the camera {_CAMERA_VERBS[self.camera.move]}")
        return ", ".join(clauses)


def shirt_colour(name: str) -> Colour:
    """RGB of a shirt. name: one of SHIRT_HUES"""
    value = 0.80 if name in ("yellow", "cyan", "green") else 0.86
    return colorsys.hsv_to_rgb(SHIRT_HUES[name] / 360, 0.85, value)


def _heading_words(motion: Motion) -> str:
    """Where a walk goes; nothing for a motion in place or a walk at an odd angle."""
    if motion.name != "walk":
        return ""
    return next((_HEADING_WORDS[word] for word, angle in HEADINGS.items() if abs(angle - motion.heading) < 1e-6), "")


def _clothes(puppet: Puppet) -> str:
    return "coloured suit" if puppet.suit else f"{puppet.shirt} {_PATTERN_WORDS[puppet.pattern]}shirt"


def _describe(count: int, clothes: str, motion: str, heading: str) -> str:
    """The clause of `count` puppets that look and act alike."""
    several = count > 1
    who = COUNT_WORDS.get(count, f"{count} puppets")
    worn = f"{clothes}s" if several else f"a {clothes}"
    verb = f"{VERBS[motion][several]} {heading}".rstrip()
    return f"{who} in {worn} {verb}"


@dataclass(frozen=True)
class Prompt:
    """The part of a scene that the text controls, in the small language that the tiny checkpoints were taught.

    count: a key of COUNT_WORDS    shirt: of SHIRT_HUES    action: one of PROMPT_ACTIONS    ground: one of GROUNDS
    raises: ValueError for a word outside the language
    """

    count: int
    shirt: str
    action: str
    ground: str

    def __post_init__(self) -> None:
        check_choice("number of puppets", self.count, COUNT_WORDS)
        check_choice("shirt", self.shirt, SHIRT_HUES)
        check_choice("action", self.action, PROMPT_ACTIONS)
        check_choice("ground", self.ground, GROUNDS)

    def scene(self, rng: random.Random) -> SceneSpec:
        """A scene that shows this prompt; everything the text leaves open is drawn from `rng`."""
        walking = self.action in ("left", "right")
        heading = HEADINGS[self.action] if walking else rng.uniform(-0.5, 0.5)
        speed = rng.uniform(1.15, 1.45) if walking else rng.uniform(0.9, 1.15)
        motion_name = "walk" if walking else self.action
        centre = rng.uniform(-0.25, 0.25) + (0.0 if not walking else (0.65 if self.action == "left" else -0.65))
        phase = rng.uniform(0, 6.283)
        puppets = tuple(
            Puppet(shirt=self.shirt,
                   motion=Motion(motion_name, heading, speed, phase + rng.uniform(-0.4, 0.4)),
                   start=(centre + (i - (self.count - 1) / 2) * SPACING + rng.uniform(-0.05, 0.05),
                          rng.uniform(-0.3, 0.3)),
                   height=rng.uniform(0.9, 1.06), skin=rng.choice(SKINS), hair=rng.choice(HAIRS))
            for i in range(self.count))  # fmt: skip
        plate = (rng.uniform(0.66, 0.82),) * 3
        camera = Camera(distance=5.2, height=rng.uniform(1.2, 1.5), view=4.4)
        return SceneSpec(puppets, ground=self.ground, plate=plate, camera=camera)

    def caption(self) -> str:
        """The sentence that all scenes of this prompt share."""
        return self.scene(random.Random(0)).caption()


def all_prompts() -> list[Prompt]:
    """Every prompt of the small language, in a fixed order."""
    return [Prompt(n, s, a, g) for n in COUNT_WORDS for s in SHIRT_HUES for a in PROMPT_ACTIONS for g in GROUNDS]


def split_prompts(held_out: int = 60, seed: int = 7) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts for training and prompts never shown in training. returns: (train, held out)"""
    prompts = all_prompts()
    random.Random(seed).shuffle(prompts)
    return prompts[held_out:], prompts[:held_out]


def random_scene(seed: int, puppets: int | None = None, balls: int | None = None, move: str | None = None) -> SceneSpec:
    """Any scene the world knows: mixed clothes, patterns and motions, balls, moving cameras.

    puppets, balls: how many, drawn if None    move: of the camera, drawn if None
    raises: ValueError for fewer than none of something, or an unknown move
    """
    for what, number in (("puppets", puppets), ("balls", balls)):
        if number is not None and number < 0:
            raise ValueError(f"Puppet World: a scene cannot have {number} {what}. Accepted: 0 and more.")
    if move is not None:
        check_choice("camera move", move, MOVES)
    rng = random.Random(seed)
    count = puppets if puppets is not None else rng.choice((1, 1, 2, 2, 3))
    people = tuple(_random_puppet(rng, (i - (count - 1) / 2) * SPACING) for i in range(count))
    thrown = tuple(_random_ball(rng) for _ in range(balls if balls is not None else rng.choice((0, 0, 1, 2))))
    kind = move if move is not None else rng.choice(("hold", "hold", "orbit", "dolly", "pan"))
    # all amounts are drawn, so that the same seed gives the same scene but for the camera's move
    amounts = {"hold": 0.0, "orbit": rng.choice((-1, 1)) * rng.uniform(15, 40), "dolly": rng.uniform(0.4, 1.0),
               "pan": rng.choice((-1, 1)) * rng.uniform(6, 14)}  # fmt: skip
    camera = Camera(kind, amounts[kind], rng.uniform(4.6, 5.8), rng.uniform(1.0, 1.8), 4.8)
    return SceneSpec(people, thrown, rng.choice(GROUNDS), (rng.uniform(0.6, 0.85),) * 3, camera)


def _random_puppet(rng: random.Random, x: float) -> Puppet:
    """A puppet near x metres. The order of the draws is part of every seed's meaning."""
    name = rng.choice(("walk", "walk", "walk", "wave", "jump", "turn", "squat", "dance", "stand"))
    heading = rng.choice(tuple(HEADINGS.values())) if name == "walk" else rng.uniform(-0.8, 0.8)
    return Puppet(
        shirt=rng.choice(tuple(SHIRT_HUES)),
        pattern=rng.choice(PATTERNS),
        motion=Motion(name, heading, speed=rng.uniform(0.8, 1.4), phase=rng.uniform(0, 6.283)),
        start=(x + rng.uniform(-0.2, 0.2), rng.uniform(-0.6, 0.6)),
        height=rng.uniform(0.85, 1.08),
        skin=rng.choice(SKINS),
        hair=rng.choice(HAIRS),
    )


def _random_ball(rng: random.Random) -> Ball:
    """A ball in front of the puppets. The order of the draws is part of every seed's meaning."""
    return Ball(
        colour=tuple(rng.uniform(0.2, 0.95) for _ in range(3)),
        radius=rng.uniform(0.1, 0.18),
        start=(rng.uniform(-1.6, 1.6), rng.uniform(0.5, 1.2)),
        drop=rng.uniform(0.8, 1.8),
        velocity=(rng.uniform(-0.5, 0.5), rng.uniform(-0.2, 0.2)),
        bounce=rng.uniform(0.7, 0.85),
    )
