"""Caches at a chosen site, and the strictest check of one: a forecast at the very place that was just kept."""

from __future__ import annotations

import torch
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.reuse import Reuse
from interspatial.models.cache.sites import SITES
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.cache.taylorseer import TaylorSeer
from interspatial.models.report import Card


def at_site(model, site: str, interval: int, *, order: int = 1, first: int = 2, last: int = 0):
    """A clone of `model` with a step cache that puts forecasts back at `site`."""
    return attached(model, StepCache(TaylorSeer(order), Fixed(interval), first, last, site))


class Twice:
    """Keeps each evaluation and forecasts it right away by reuse: the same answer, though no block runs for it.

    site: where
    pairs: what the model answered, and the forecast
    scales: largest number of the latent that came in, which bounds the rounding
    refused: sentences of the site
    """

    def __init__(self, site: str) -> None:
        self.site = site
        self.cache = StepCache(Reuse(), Fixed(1), 0, 0, site)
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.scales: list[float] = []
        self.refused: list[str] = []

    def why_not(self, step) -> str | None:
        reason = SITES[self.site].why_not(step)
        self.refused += [reason] if reason else []
        return reason

    def evaluate(self, step) -> torch.Tensor:
        job = self.cache.job(step)
        answer = SITES[self.site].record(job)
        self.scales.append(float(step.x.abs().max()))
        assert self.cache.method.ready(job)
        self.pairs.append((answer.clone(), SITES[self.site].replay(job, self.cache.method.weigh)))
        return answer


def attached(model, method, kind: str = "cache"):
    """A clone of `model` with a step method."""
    from interspatial.models import host

    return host.attach_step(model, Card(kind, kind, skips="whole evaluations"), method)


def report(model) -> str:
    """What the patches of a model did in its last run."""
    from interspatial.models import host

    return host.report_of(model)
