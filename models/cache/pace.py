"""Which steps run: paces. A pace sees how many steps ago the model last ran, and may look at the latent."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Pace(Protocol):
    """Settings of a schedule; whatever it must remember lies in the object that `begin` gives."""

    def begin(self) -> object:
        """What one run, branch-free and per window, remembers."""
        ...

    def runs(self, memory: object, gap: int, x: Tensor, sigma: float, flow: bool) -> bool:
        """True when the model must run. gap: steps since it last ran, 1 for the step right after

        Called once for each sampler call that is free to be forecast, and for those that run anyway.
        x: the latent at this call, [B, C, ...]
        """
        ...

    def foreseen(self, gap: int) -> bool | None:
        """The answer before the run, None when it depends on what is seen."""
        ...


@dataclass(frozen=True)
class Fixed:
    """One run, then interval - 1 forecasts."""

    interval: int

    def begin(self) -> None:
        return None

    def runs(self, memory: None, gap: int, x: Tensor, sigma: float, flow: bool) -> bool:
        return gap >= self.interval

    def foreseen(self, gap: int) -> bool:
        return gap >= self.interval
