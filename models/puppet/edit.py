"""A Puppet World posed again with other motions, places or people."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .choice import check_choice
from .motion import MOTIONS
from .scene import Puppet
from .world import World, pose_scene

ALL, KEPT = "all", "as it is"
PEOPLE = (ALL, "1", "2", "3")
MOTIONS_OR_KEPT = (KEPT, *MOTIONS)
WALKING = 1.2  # m/s; the speed of other motions is a tempo, and so is not one to walk at


@dataclass(frozen=True)
class Change:
    """person: one of PEOPLE    motion: one of MOTIONS_OR_KEPT    speed: times the speed
    offset: x, z in metres    yaw: degrees about the vertical, from +z towards +x
    only: leave the others out; with all people nobody is left out

    raises: ValueError for a word that is not known
    """

    person: str = ALL
    motion: str = KEPT
    speed: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    yaw: float = 0.0
    only: bool = False

    def __post_init__(self) -> None:
        check_choice("person", self.person, PEOPLE)
        check_choice("motion", self.motion, MOTIONS_OR_KEPT)

    def of(self, puppet: Puppet) -> Puppet:
        """The puppet with the change."""
        old = puppet.motion
        name = old.name if self.motion == KEPT else self.motion
        speed = old.speed if (name == "walk") == (old.name == "walk") else WALKING if name == "walk" else 1.0
        motion = replace(old, name=name, speed=self.speed * speed, heading=old.heading + math.radians(self.yaw))
        start = (puppet.start[0] + self.offset[0], puppet.start[1] + self.offset[1])
        return replace(puppet, motion=motion, start=start)


def changed(world: World, change: Change, tick: Callable[[int], None]) -> World:
    """The world as it is after a change; itself where nothing changes.

    tick: as of `pose_scene`
    raises: ValueError for a person who is not there
    """
    people = world.spec.puppets
    if change.person != ALL and int(change.person) > len(people):
        raise ValueError(f"person {change.person} was chosen and the world has {len(people)}. Accepted: all, or a "
                         "number up to that. Choose another person, or set puppets in Puppet Scene.")  # fmt: skip
    chosen = [change.person in (ALL, str(i + 1)) for i in range(len(people))]
    after = [change.of(p) if yes else p for p, yes in zip(people, chosen, strict=True)]
    if change.only:
        after = [p for p, yes in zip(after, chosen, strict=True) if yes]
    if tuple(after) == people:
        return world
    spec = replace(world.spec, puppets=tuple(after))
    return pose_scene(spec, world.frames, world.height, world.width, world.fps, tick)
