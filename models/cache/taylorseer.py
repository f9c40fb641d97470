"""TaylorSeer: the next outputs from a polynomial through the last ones. arXiv 2503.06923, section 3.

Differs from the paper by default: divided differences over sigma, which are exact for polynomials whatever the gaps,
and a first forecast from two outputs. `paper` is its own form, over steps.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .clock import Axis
from .job import Job
from .registry import CacheMethod, cache
from .sites import site_of
from .weights import bounded, damped, hermite, newton, paper

PREDICTORS = {"divided differences": newton, "paper": paper, "damped": damped, "hermite": hermite}
IN_STEPS = ("paper", "hermite")   # their numbers mean steps


@cache("taylorseer")
@dataclass(frozen=True)
class TaylorSeer(CacheMethod):
    """order: degree of the polynomial    predictor: one of PREDICTORS"""

    order: int = 1
    predictor: str = "divided differences"

    label: ClassVar[str] = "TaylorSeer"
    summary: ClassVar[str] = "a polynomial through the last outputs"

    @property
    def axis(self) -> Axis:
        return "step" if self.predictor in IN_STEPS else "sigma"

    @property
    def keeps(self) -> int:
        return self.order + 1

    @property
    def least(self) -> int:
        return 1 if self.predictor == "paper" else min(self.order, 1) + 1

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Int.Input("order", default=1, min=0, max=4,
                         tooltip="Degree of the polynomial. 0 repeats the last output, 1 is robust; higher ones need "
                         "many steps and multiply noise. Where they would by more than four, the order is lowered."),
            io.Combo.Input("predictor", options=list(PREDICTORS), default="divided differences",
                           tooltip="divided differences: exact for polynomials, whatever the gaps. paper: as "
                           "published, in steps, never lowered. damped: 70 % of divided differences, 30 % of the last "
                           "output. hermite: HiCache's, half of the paper's slope."),
        ]  # fmt: skip

    def replay(self, job: Job) -> Tensor:
        return site_of(job).replay(job, lambda us, u: self.weigh(us, u, job.settled.first))

    def weigh(self, us: Sequence[float], u: float, first: int = 0) -> list[float]:
        """first: steps at the start that always ran; the paper's form asks"""
        if self.predictor == "paper":
            return paper(us, u, self.order, first)
        return bounded(lambda order: PREDICTORS[self.predictor](us, u, order), self.order)
