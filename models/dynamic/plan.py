"""What each block computes at a noise level: known before the first step, as it hangs on the time embedding alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .routers import BlockRouter, kept


@dataclass(frozen=True)
class BlockPlan:
    """heads, groups: those that are computed, None for all    share: of the tokens that the MLP computes"""

    heads: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Shares:
    """How many tokens an MLP computes, measured when the routers were trained.

    sigmas: rising    shares: for each sigma one share a block
    """

    sigmas: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]

    def at(self, sigma: float) -> tuple[float, ...]:
        """On straight lines between the sigmas, and the last value outside."""
        right = bisect_right(self.sigmas, sigma)
        if right == 0 or right == len(self.sigmas):
            return self.shares[max(right - 1, 0)]
        low, high = self.sigmas[right - 1], self.sigmas[right]
        part = (sigma - low) / (high - low)
        pairs = zip(self.shares[right - 1], self.shares[right], strict=True)
        return tuple(a + part * (b - a) for a, b in pairs)


def ramp(percent: float) -> float:
    """Share of the tokens for files that say none: everything while the layout forms, most of them for the details.

    percent: of the noise range, 0 pure noise
    """
    return 1.0 if percent < 0.2 else 0.8 if percent >= 0.9 else 0.6


def plans(routers: Sequence[BlockRouter], e: Tensor, shares: Sequence[Sequence[float]]) -> list[list[BlockPlan]]:
    """For each noise level the plan of every block. e: [S, C]    shares: S rows, one share a block"""
    heads = [kept(router.heads, e) for router in routers]
    groups = [kept(router.groups, e) for router in routers]
    return [
        [
            BlockPlan(heads[i][s], groups[i][s], shares[s][i] if router.tokens else 1.0)
            for i, router in enumerate(routers)
        ]
        for s in range(len(e))
    ]
