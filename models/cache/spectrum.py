"""Spectrum (arXiv 2603.01623): Chebyshev polynomials fitted to many outputs, blended with a line through the last two.

Differs from its code: places are sigmas (its steps suppose 50 of them), the weights sum to 1, and a fit that would
multiply noise is lowered. With two outputs there is the line alone, as everywhere for sound, whose fits are heard.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .job import Job
from .registry import CacheMethod, cache
from .sites import site_of
from .weights import bounded, chebyshev, mixed, newton

# Mean relative error of one forecast on the path of the full run (tiny text-to-video model, shift 3, two prompts; 20
# steps with every 2nd run, and 50 with every 4th): 0.040 and 0.047 with these; 0.053 and 0.053 with degree 4, history
# 8; 0.13 and 0.13 with blend 1, history 8; 0.10 and 0.10 with degree 4, blend 1 and all outputs, as in the paper. The
# line alone has 0.037 and 0.046.
DEGREE, RIDGE, BLEND, HISTORY = 2, 0.1, 0.5, 4


@cache("spectrum")
@dataclass(frozen=True)
class Spectrum(CacheMethod):
    """degree: of the fit    ridge: how strongly its coefficients are held small    blend: share of the fit, the rest is
    the line    history: outputs kept
    """

    degree: int = DEGREE
    ridge: float = RIDGE
    blend: float = BLEND
    history: int = HISTORY

    label: ClassVar[str] = "Spectrum"
    summary: ClassVar[str] = "a smooth fit through many outputs, blended with a line through the last two"

    @property
    def keeps(self) -> int:
        return self.history

    @property
    def least(self) -> int:
        return 2

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Int.Input("degree", default=DEGREE, min=1, max=6,
                         tooltip="Degree of the fit; at most one below the outputs there are. The paper has 4."),
            io.Float.Input("ridge", default=RIDGE, min=0.001, max=10.0, step=0.001,
                           tooltip="How strongly the fit is held flat. Higher is steadier and follows less."),
            io.Float.Input("blend", default=BLEND, min=0.0, max=1.0, step=0.05,
                           tooltip="Share of the fit in the forecast. 0: only the line through the last two outputs; "
                           "1: only the fit, as in the paper."),
            io.Int.Input("history", default=HISTORY, min=2, max=8,
                         tooltip="Outputs that are kept for the fit. Memory grows with it."),
        ]  # fmt: skip

    def replay(self, job: Job) -> Tensor:
        sigmas = job.step.run.schedule.sigmas
        ends = [job.tick.at(self.axis, sigma) for sigma in (sigmas[0], sigmas[-2])]   # where the model is evaluated
        return site_of(job).replay(job, lambda us, u: self.weigh(us, u, ends))

    def weigh(self, us: Sequence[float], u: float, run: Sequence[float] = ()) -> list[float]:
        """run: places of the run's ends, over which the fit spans; see `weights.chebyshev`"""

        def of(degree: int) -> list[float]:
            line = newton(us, u, min(degree, 1))
            return line if len(us) < 3 else mixed(line, chebyshev(us, u, degree, self.ridge, run), self.blend)

        return bounded(of, self.degree)
