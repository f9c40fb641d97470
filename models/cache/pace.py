"""Which steps run: paces. A pace sees how many steps ago the model last ran, and may look at the latent.

One that looks is in `seacache`. The first and last steps of a run, which always run, are the cache's business.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from .job import Job


class Pace(Protocol):
    """Settings of a schedule; whatever it must remember lies in the object that `begin` gives.

    label, summary: shown to the user
    """

    label: ClassVar[str]
    summary: ClassVar[str]

    @staticmethod
    def inputs(io) -> list:
        """The pace's own widgets; `io` is ComfyUI's node schema module."""
        ...

    def begin(self) -> object:
        """What is remembered from here on: asked once for each place (latent shape, device, window) of a run, and
        again where the sampler went back up in sigma."""
        ...

    def runs(self, memory: object, gap: int, job: Job) -> bool:
        """True when the model must run. gap: steps since it last ran, 1 for the step right after

        Called once for each step, also for those that run anyway. job: the first evaluation of the step
        """
        ...

    def foreseen(self, memory: object, gap: int) -> bool | None:
        """What `runs` will say, asked before the run, step after step; None when it depends on the latents.

        memory: from `begin`; it is written to as `runs` does, so a preview takes one of its own
        """
        ...


PACES: dict[str, type[Pace]] = {}


def pace(name: str) -> Callable[[type[Pace]], type[Pace]]:
    """Register a pace under the name that workflows store."""

    def add(cls: type[Pace]) -> type[Pace]:
        PACES[name] = cls
        return cls

    return add


@pace("fixed")
@dataclass(frozen=True)
class Fixed:
    """One run, then interval - 1 forecasts."""

    interval: int = 2

    label: ClassVar[str] = "Fixed"
    summary: ClassVar[str] = "one step in every so many runs"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Int.Input("interval", default=2, min=1, max=50,
                         tooltip="Steps from one that runs to the next. 1: every step runs; 2 suits 20 to 40 steps, 3 "
                         "to 4 suits 50. Higher is faster and further from the full render."),
        ]  # fmt: skip

    def begin(self) -> None:
        return None

    def runs(self, memory: None, gap: int, job: Job) -> bool:
        return self.foreseen(memory, gap)

    def foreseen(self, memory: None, gap: int) -> bool:
        return gap >= self.interval


@dataclass
class Window:
    """size: steps from the last run to the next, not rounded"""

    size: float


@pace("growing")
@dataclass(frozen=True)
class Growing:
    """The interval grows with each run that it asked for, as in Spectrum (arXiv 2603.01623).

    window: the first interval, at least 2, so that no step is counted that only runs as one of the first
    flex: what is added to it each time; the whole part counts
    """

    window: float = 2.0
    flex: float = 0.75

    label: ClassVar[str] = "Growing"
    summary: ClassVar[str] = "ever fewer steps run the further the picture is"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("window", default=2.0, min=2.0, max=50.0, step=0.25,
                           tooltip="Steps from one that runs to the next, at first. 2 is the smallest that skips."),
            io.Float.Input("flex", default=0.75, min=0.0, max=10.0, step=0.05,
                           tooltip="How many steps longer the next stretch is. 0.75 keeps quality, 3 is for speed; 0 "
                           "never grows."),
        ]  # fmt: skip

    def begin(self) -> Window:
        return Window(self.window)

    def runs(self, memory: Window, gap: int, job: Job) -> bool:
        return self.foreseen(memory, gap)

    def foreseen(self, memory: Window, gap: int) -> bool:
        if gap < floor(memory.size):
            return False
        memory.size += self.flex
        return True
