"""Where each model family stands a step cache: starting points by family and number of steps."""
from __future__ import annotations

from dataclasses import dataclass

from ..families import Family

FEW_STEPS = 12


@dataclass(frozen=True)
class Preset:
    """interval: one run in so many steps    first, last: steps that always run    site: see `sites`"""

    name: str
    interval: int
    first: int
    last: int
    site: str = "output"


def preset_of(family: Family | None, steps: int) -> Preset:
    """The preset of a model family for a run of so many steps."""
    if steps < FEW_STEPS:
        return Preset("few steps", 1, steps, 0)
    if steps < 40:
        return Preset("20 steps", 2, max(round(0.25 * steps), 2), 2)
    return Preset("50 steps", 4, max(4, round(0.1 * steps)), 1)
