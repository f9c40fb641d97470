"""Parts of a scene by themselves: one puppet alone, or the place without anybody. Nothing is posed again."""

from __future__ import annotations

from dataclasses import replace

import torch

from .render import Bodies
from .world import World


def alone(world: World, person: int) -> World:
    """One puppet where it is, without the others and without balls. person: 0-based"""
    puppet = world.spec.puppets[person]
    kept = world.owner == person
    return replace(world, spec=replace(world.spec, puppets=(puppet,), balls=()), bodies=_only(world.bodies, kept),
                   joints=world.joints[:, person : person + 1], owner=torch.zeros_like(world.owner[kept]))  # fmt: skip


def empty(world: World, shadows: bool = False) -> World:
    """The place and its balls without the puppets.

    shadows: leave the puppets' shadows on the floor
    """
    people = len(world.spec.puppets)
    kept = world.owner >= people
    joints = world.joints if shadows else world.joints[:, :0]  # a shadow falls where a pelvis is
    return replace(world, spec=replace(world.spec, puppets=()), bodies=_only(world.bodies, kept), joints=joints,
                   owner=world.owner[kept] - people)  # fmt: skip


def _only(bodies: Bodies, kept: torch.Tensor) -> Bodies:
    return Bodies(bodies.rotation[:, kept], bodies.origin[:, kept], bodies.axis[kept], bodies.radius[kept])
