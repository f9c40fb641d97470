"""A run of a step cache on a velocity field of one line, through the real cache and Euler's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule

SHIFTED = tuple(2 * s / (1 + s) for s in torch.linspace(1, 0, 21, dtype=torch.float64).tolist())   # 20 steps


def euler(cache, velocity: Callable, x: torch.Tensor, sigmas: Sequence[float] = SHIFTED,
          sampler: str = "sample_euler") -> tuple[list[torch.Tensor], list[int]]:  # fmt: skip
    """velocity: (x, sigma) -> dx / d sigma    returns: the latent before each step and at last, the steps that ran"""
    from interspatial.models.forward import Branch, Forward
    from interspatial.models.host import StepCall

    run = Run(Schedule(sigmas, lambda percent: 1 - percent, sampler), Report())
    tally = run.report.tally("toy", Card("toy", "cache", skips="whole evaluations"))
    path, ran = [x], []
    for step, (sigma, after) in enumerate(pairwise(sigmas)):
        run.begin_call(sigma)

        def proceed(x: torch.Tensor = x, sigma: float = sigma, step: int = step) -> torch.Tensor:
            ran.append(step)
            return x - sigma * velocity(x, sigma)

        forward = Forward(None, "not a model", len(x), (Branch("prompt", 0, slice(0, len(x))),), run.position)
        call = StepCall(x=x, forward=forward, run=run, model=None, compiled=False, shapes=(tuple(x.shape),), options={},
                        owner="toy", tally=tally, proceed=proceed)  # fmt: skip
        x = x + (after - sigma) * (x - cache.evaluate(call)) / sigma
        path.append(x)
    return path, ran
