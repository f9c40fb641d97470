"""The place of an evaluation on the axis along which a cache forecasts.

Forecasts want an abscissa on which outputs are smooth: sigma for flow models (their schedules are far from even in
steps), log sigma for the others, or the step, which is what most papers count. Samplers that go back up in sigma
(restarts) begin a new generation: what was kept before does not continue there.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..run import Run

Axis = Literal["sigma", "step"]
UP = 1e-4   # relative rise of sigma that counts as going back; samplers carry sigma through exp(log(x)) in float32


@dataclass(frozen=True)
class Tick:
    """One sampler call.

    call: number of the call in this run, from 1
    step, steps: as in `schedule.Position`
    sigma: the model is evaluated at it
    generation: rises when the sampler goes back up
    """

    call: int
    step: int
    steps: int
    sigma: float
    generation: int
    flow: bool

    def at(self, axis: Axis, sigma: float | None = None) -> float:
        """The abscissa. sigma: in place of this call's own, for rows that have a clock of their own"""
        if axis == "step":
            return float(self.step)
        sigma = self.sigma if sigma is None else sigma
        return sigma if self.flow else math.log(max(sigma, 1e-10))


class Clock:
    """Follows the calls of one run. Asked by every evaluation of a call, it gives the same tick."""

    def __init__(self) -> None:
        self._tick: Tick | None = None

    def tick(self, run: Run) -> Tick:
        last, position = self._tick, run.position
        if last is None or last.call != run.calls:
            back = last is not None and position.sigma > last.sigma * (1 + UP)
            generation = (last.generation if last else 0) + back
            self._tick = Tick(run.calls, position.step, position.steps, position.sigma, generation, run.schedule.flow)
        return self._tick
