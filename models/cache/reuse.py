"""Reuse: a step that does not run repeats the last output. What every forecast has to beat."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .registry import CacheMethod, cache
from .weights import reuse


@cache("reuse")
@dataclass(frozen=True)
class Reuse(CacheMethod):
    """Nothing to set."""

    label: ClassVar[str] = "Reuse"
    summary: ClassVar[str] = "the last output as it is"

    @staticmethod
    def inputs(io) -> list:
        return []

    def weigh(self, us: Sequence[float], u: float) -> list[float]:
        return reuse(us, u)
