"""The list of step cache methods. A method is one file: its settings as a frozen dataclass, registered by name.

The node builds its widgets from this list; no other file changes when a method is added. No method lives here.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from .clock import Axis
from .job import Job
from .sites import site_of


class CacheMethod:
    """One published way to leave evaluations of the model out.

    A method that forecasts outputs writes `weigh`: what is kept and where it is put back is the site's business. One
    that keeps something of its own writes `record`, `replay` and `ready`.

    label, summary: shown to the user
    keeps: entries of history
    least: entries of history before a first forecast
    axis: abscissa of the forecast
    decides: the method looks before it decides, so no pace is asked; it writes `evaluate`
    blocks: it works inside the blocks: `family.unskippable` and torch.compile make it stand aside
    """

    label: ClassVar[str]
    summary: ClassVar[str]
    decides: ClassVar[bool] = False
    blocks: ClassVar[bool] = False
    axis: Axis = "sigma"

    @property
    def keeps(self) -> int:
        return 1

    @property
    def least(self) -> int:
        return 1

    @staticmethod
    def inputs(io) -> list:
        """The method's own widgets; `io` is ComfyUI's node schema module."""
        raise NotImplementedError

    def weigh(self, us: Sequence[float], u: float) -> list[float]:
        """Weight of each kept output in the forecast at u. us: oldest first, distinct"""
        raise NotImplementedError

    def why_not(self, job: Job) -> str | None:
        """A reason of the method's own to leave a whole run alone."""
        return None

    def ready(self, job: Job) -> bool:
        """True when every branch of this evaluation can be forecast."""
        return site_of(job).ready(job, self.least)

    def record(self, job: Job) -> Tensor:
        """Run the model and keep what later forecasts need. returns: the model's output, bit for bit"""
        return site_of(job).record(job)

    def replay(self, job: Job) -> Tensor:
        """The output by forecast."""
        return site_of(job).replay(job, self.weigh)

    def evaluate(self, job: Job, must: bool) -> Tensor:
        """Only of methods that decide by themselves: run or forecast, and tell `job.ran()` or `job.skipped()`.

        must: run, whatever the method would decide: a first or last step, or one in which another role was evaluated
        """
        raise NotImplementedError


CACHES: dict[str, type[CacheMethod]] = {}


def cache(name: str) -> Callable[[type[CacheMethod]], type[CacheMethod]]:
    """Register a method under the name that workflows store."""

    def add(cls: type[CacheMethod]) -> type[CacheMethod]:
        CACHES[name] = cls
        return cls

    return add
