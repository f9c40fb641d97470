"""A scene of Puppet World as plain data: who is there, what they wear and do, and the sentence that says so."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, field

from .camera import Camera
from .motion import HEADINGS, Motion

Colour = tuple[float, float, float]

# Hues are spread so that a judge can tell them apart after a lossy round trip; skin and hair are orange, so no shirt is.
SHIRT_HUES = {"red": 0, "yellow": 54, "green": 125, "cyan": 182, "blue": 225, "purple": 275, "pink": 325}
PATTERNS = ("plain", "stripes", "checks", "dots")
GROUNDS = ("floor", "plate")
COUNT_WORDS = {1: "a puppet", 2: "two puppets", 3: "three puppets"}
VERBS = {"stand": ("stands still", "stand still"), "wave": ("waves", "wave"), "jump": ("jumps", "jump"),
         "turn": ("turns around", "turn around"), "squat": ("squats", "squat"), "dance": ("dances", "dance")}  # fmt: skip
SKINS: tuple[Colour, ...] = ((0.90, 0.72, 0.58), (0.74, 0.55, 0.42), (0.52, 0.37, 0.27))
HAIRS: tuple[Colour, ...] = ((0.16, 0.11, 0.08), (0.34, 0.20, 0.10), (0.10, 0.10, 0.11))
TROUSERS: Colour = (0.20, 0.20, 0.25)
SPACING = 1.08  # metres between neighbours: silhouettes stay apart in the default camera


@dataclass(frozen=True)
class Garment:
    """A solid texture in the rest pose, so that it sticks to the body. colour, second: RGB 0..1    pattern: one of PATTERNS"""

    colour: Colour
    pattern: str = "plain"
    second: Colour = (0.95, 0.95, 0.95)


@dataclass(frozen=True)
class Puppet:
    """start: x, z in metres    height: 1.0 is 1.78 m"""

    shirt: str = "red"
    pattern: str = "plain"
    motion: Motion = field(default_factory=lambda: Motion("walk"))
    start: tuple[float, float] = (0.0, 0.0)
    height: float = 1.0
    skin: Colour = SKINS[0]
    hair: Colour = HAIRS[0]

    def garments(self) -> dict[str, Garment]:
        return {"shirt": Garment(shirt_colour(self.shirt), self.pattern), "trousers": Garment(TROUSERS),
                "shoes": Garment((0.12, 0.10, 0.10)), "skin": Garment(self.skin), "head": Garment(self.skin, "head", self.hair)}  # fmt: skip


@dataclass(frozen=True)
class Ball:
    """drop: height of the first fall, metres    velocity: x, z in m/s    bounce: share of the speed kept at an impact"""

    colour: Colour = (0.95, 0.45, 0.10)
    radius: float = 0.14
    start: tuple[float, float] = (0.9, 0.4)
    drop: float = 1.4
    velocity: tuple[float, float] = (0.0, 0.0)
    bounce: float = 0.8


@dataclass(frozen=True)
class SceneSpec:
    puppets: tuple[Puppet, ...]
    balls: tuple[Ball, ...] = ()
    ground: str = "floor"
    plate: Colour = (0.74, 0.77, 0.80)
    camera: Camera = field(default_factory=Camera)

    def caption(self) -> str:
        """The sentence a person would type to get this scene."""
        groups: dict[tuple, int] = {}
        for p in self.puppets:
            key = (p.shirt, p.pattern, p.motion.name, _heading_word(p.motion))
            groups[key] = groups.get(key, 0) + 1
        parts = [_describe(n, *key) for key, n in groups.items()]
        parts.append("on a checkered floor" if self.ground == "floor" else "in front of a plain wall")
        if self.balls:
            parts.append("with a bouncing ball" if len(self.balls) == 1 else "with bouncing balls")
        if self.camera.move != "hold":
            parts.append(f"the camera {_CAMERA_VERBS[self.camera.move]}")
        who = " and ".join(parts[: len(groups)])
        return ", ".join([f"{who} {parts[len(groups)]}", *parts[len(groups) + 1 :]])


_CAMERA_VERBS = {"orbit": "orbits", "dolly": "moves closer", "pan": "pans"}


def shirt_colour(name: str) -> Colour:
    """RGB of a shirt. raises: ValueError for an unknown colour name"""
    if name not in SHIRT_HUES:
        raise ValueError(f"Puppet shirt {name!r} is not known. Accepted: {', '.join(SHIRT_HUES)}.")
    value = 0.80 if name in ("yellow", "cyan", "green") else 0.86
    return colorsys.hsv_to_rgb(SHIRT_HUES[name] / 360, 0.85, value)


def _heading_word(motion: Motion) -> str:
    if motion.name != "walk":
        return ""
    word = next((w for w, a in HEADINGS.items() if abs(a - motion.heading) < 1e-6), "")
    return {"toward": "toward the camera", "away": "away", "left": "to the left", "right": "to the right"}.get(word, "")


def _describe(count: int, shirt: str, pattern: str, motion: str, heading: str) -> str:
    several = count > 1
    shirt_word = f"{shirt} {'shirts' if several else 'shirt'}" if pattern == "plain" else (
        f"{shirt} {dict(stripes='striped', checks='checked', dots='dotted')[pattern]} {'shirts' if several else 'shirt'}")  # fmt: skip
    verb = ("walk" if several else "walks") + f" {heading}".rstrip() if motion == "walk" else VERBS[motion][several]
    return f"{COUNT_WORDS[count]} in {'' if several else 'a '}{shirt_word} {verb}"


@dataclass(frozen=True)
class Prompt:
    """The part of a scene that the text controls, in the small language that the tiny checkpoints were taught."""

    count: int
    shirt: str
    action: str  # "left", "right": walking; else one of the motions in place
    ground: str

    def scene(self, rng: random.Random) -> SceneSpec:
        """A scene that shows this prompt; everything the text leaves open is drawn from `rng`."""
        walking = self.action in ("left", "right")
        heading = HEADINGS[self.action] + 0.0 if walking else rng.uniform(-0.5, 0.5)
        speed = rng.uniform(1.15, 1.45) if walking else rng.uniform(0.9, 1.15)
        motion_name = "walk" if walking else self.action
        centre = rng.uniform(-0.25, 0.25) + (0.0 if not walking else (0.65 if self.action == "left" else -0.65))
        phase = rng.uniform(0, 6.283)
        puppets = tuple(
            Puppet(shirt=self.shirt,
                   motion=Motion(motion_name, heading, speed, phase + rng.uniform(-0.4, 0.4)),
                   start=(centre + (i - (self.count - 1) / 2) * SPACING + rng.uniform(-0.05, 0.05), rng.uniform(-0.3, 0.3)),
                   height=rng.uniform(0.9, 1.06), skin=rng.choice(SKINS), hair=rng.choice(HAIRS))
            for i in range(self.count))  # fmt: skip
        plate = tuple(rng.uniform(0.66, 0.82) for _ in range(1)) * 3
        camera = Camera(distance=5.2, height=rng.uniform(1.2, 1.5), view=4.4)
        return SceneSpec(puppets, ground=self.ground, plate=plate, camera=camera)

    def caption(self) -> str:
        return self.scene(random.Random(0)).caption()


def all_prompts() -> list[Prompt]:
    """Every prompt of the small language, in a fixed order."""
    actions = ("left", "right", "wave", "jump", "squat", "dance")
    return [Prompt(n, s, a, g) for n in (1, 2, 3) for s in SHIRT_HUES for a in actions for g in GROUNDS]


def split_prompts(held_out: int = 60, seed: int = 7) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts for training and prompts never shown in training. returns: (train, held out)"""
    prompts = all_prompts()
    random.Random(seed).shuffle(prompts)
    return prompts[held_out:], prompts[:held_out]


def random_scene(seed: int, puppets: int | None = None, balls: int | None = None, move: str | None = None) -> SceneSpec:
    """Any scene the world knows: mixed clothes, patterns and motions, balls, moving cameras."""
    rng = random.Random(seed)
    count = puppets if puppets is not None else rng.choice((1, 1, 2, 2, 3))
    people = []
    for i in range(count):
        name = rng.choice(("walk", "walk", "walk", "wave", "jump", "turn", "squat", "dance", "stand"))
        heading = rng.choice(tuple(HEADINGS.values())) if name == "walk" else rng.uniform(-0.8, 0.8)
        people.append(Puppet(rng.choice(tuple(SHIRT_HUES)), rng.choice(PATTERNS), Motion(name, heading, rng.uniform(0.8, 1.4), rng.uniform(0, 6.283)),
                             ((i - (count - 1) / 2) * SPACING + rng.uniform(-0.2, 0.2), rng.uniform(-0.6, 0.6)),
                             rng.uniform(0.85, 1.08), rng.choice(SKINS), rng.choice(HAIRS)))  # fmt: skip
    ball_count = balls if balls is not None else rng.choice((0, 0, 1, 2))
    thrown = tuple(Ball(tuple(rng.uniform(0.2, 0.95) for _ in range(3)), rng.uniform(0.1, 0.18), (rng.uniform(-1.6, 1.6), rng.uniform(0.5, 1.2)),
                        rng.uniform(0.8, 1.8), (rng.uniform(-0.5, 0.5), rng.uniform(-0.2, 0.2)), rng.uniform(0.7, 0.85))
                   for _ in range(ball_count))  # fmt: skip
    kind = move if move is not None else rng.choice(("hold", "hold", "orbit", "dolly", "pan"))
    amount = {"hold": 0.0, "orbit": rng.choice((-1, 1)) * rng.uniform(15, 40), "dolly": rng.uniform(0.4, 1.0), "pan": rng.choice((-1, 1)) * rng.uniform(6, 14)}[kind]
    camera = Camera(kind, amount, rng.uniform(4.6, 5.8), rng.uniform(1.0, 1.8), 4.8)
    return SceneSpec(tuple(people), thrown, rng.choice(GROUNDS), (rng.uniform(0.6, 0.85),) * 3, camera)
