"""A step cache planned, and the same one run, for tests that compare the two."""

from __future__ import annotations

import torch
from interspatial.models.report import Card
from interspatial.tests.models.tinies import Tiny

STEPS = 13


def cache(method: str = "taylorseer", *, settings: dict | None = None, pace: tuple = (), **given):
    """A StepCache. pace: name and settings"""
    from interspatial.models.cache import CACHES, PACES, StepCache

    return StepCache(CACHES[method](**settings or {}), PACES[pace[0]](**pace[1]) if pace else None, **given)


def attached(model, step_cache):
    from interspatial.models import host

    return host.attach_step(model, Card("cache", "cache"), step_cache)


def planned(model, sampler: str = "euler", steps: int = STEPS, scheduler: str = "simple", latent=None):
    """The plan of the outermost cache on the model."""
    from interspatial.models.cache.plan import plans_of
    from interspatial.models.host.rehearsal import sigmas_of

    latent = None if latent is None else {"samples": latent}
    return plans_of(model, sigmas_of(model, steps, sampler, scheduler), sampler, latent)[0]


def listening(monkeypatch) -> tuple[list, list]:
    """Filled by runs: (step, sigma, run or forecast) of each evaluation, and the bytes of history before it."""
    from interspatial.models.cache.job import Job

    seen, kept = [], [0]

    def listen(name: str, does: str) -> None:
        count = getattr(Job, name)

        def counting(job):
            kept.append(sum(track.bytes for track in job.ledger.tracks))
            seen.append((job.tick.step, job.tick.sigma, does))
            count(job)

        monkeypatch.setattr(Job, name, counting)

    listen("ran", "run")
    listen("skipped", "forecast")
    return seen, kept


def run(model, tiny: Tiny, monkeypatch, sampler: str = "euler", steps: int = STEPS, cfg: float = 1.0):
    """Sample. returns: what `listening` heard, of the history the most"""
    import nodes

    seen, kept = listening(monkeypatch)
    latent = {"samples": tiny.samples()}
    with torch.inference_mode():
        nodes.common_ksampler(model, 3, steps, cfg, sampler, "simple", tiny.prompt(1), tiny.prompt(2), latent)
    return seen, max(kept)


def calls_of(plan) -> list:
    return [(call.step, call.sigma, call.does) for call in plan.calls]
