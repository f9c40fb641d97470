"""TaylorSeer: the next outputs from a polynomial through the last ones. arXiv 2503.06923, section 3."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .registry import CacheMethod, cache
from .weights import newton


@cache("taylorseer")
@dataclass(frozen=True)
class TaylorSeer(CacheMethod):
    """order: degree of the polynomial"""

    order: int = 1

    label: ClassVar[str] = "TaylorSeer"
    summary: ClassVar[str] = "a polynomial through the last outputs"

    @property
    def keeps(self) -> int:
        return self.order + 1

    @property
    def least(self) -> int:
        return min(self.order, 1) + 1

    @staticmethod
    def inputs(io) -> list:
        return [io.Int.Input("order", default=1, min=0, max=4, tooltip="Degree of the polynomial. 1 is robust.")]

    def weigh(self, us: Sequence[float], u: float) -> list[float]:
        return newton(us, u, self.order)
