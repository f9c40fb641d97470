"""The site `output`: what the whole model answers is forecast, and nothing of it runs."""
# S latents packed into one row: video, and sound where there is some

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .history import Weigh
from .job import Job

if TYPE_CHECKING:
    from ..host import StepCall


class Output:
    """What is kept is the velocity d = (x - denoised) / sigma, or the denoised latent itself.

    With noise added at every step the velocity jumps with it, and the denoised latent does not.

    Sound with a schedule of its own is brought to it before it is kept: the model returns its velocity times the slope
    d(sigma of the sound) / d(sigma of the video), which is not smooth where the velocity is.
    """

    def why_not(self, step: StepCall) -> str | None:
        return None

    def ready(self, job: Job, least: int) -> bool:
        return job.ready(least)

    def record(self, job: Job) -> Tensor:
        denoised = job.step.proceed()
        sounds = _sounds(job.step)
        xs, answers = _parts(job.step, job.step.x), _parts(job.step, denoised)
        job.keep(tuple(_smooth(job, *part) for part in zip(xs, answers, sounds, strict=True)), sounds)
        return denoised

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        x, sounds = job.step.x, _sounds(job.step)
        kept = job.forecast(weigh, sounds, x)
        found = [_answer(job, *part) for part in zip(_parts(job.step, x), kept, sounds, strict=True)]
        return (found[0] if len(found) == 1 else torch.cat(found, -1)).to(x.dtype)


def _smooth(job: Job, x: Tensor, denoised: Tensor, sound: bool) -> Tensor:
    """The part of the answer that follows a curve, in float32. `_answer` undoes it."""
    own, slope = job.sound_clock() if sound else (job.tick.sigma, 1.0)
    if job.settled.velocity:
        return ((x - denoised) / (job.tick.sigma * slope)).float()
    if own == job.tick.sigma:
        return denoised.float()
    return (x - (x - denoised) * (own / (job.tick.sigma * slope))).float()


def _answer(job: Job, x: Tensor, kept: Tensor, sound: bool) -> Tensor:
    """The denoised latent as the sampler wants it, at this step's place."""
    own, slope = job.sound_clock() if sound else (job.tick.sigma, 1.0)
    if job.settled.velocity:
        return x - (job.tick.sigma * slope) * kept
    return kept if own == job.tick.sigma else x - (x - kept) * (job.tick.sigma * slope / own)


def _parts(step: StepCall, packed: Tensor) -> list[Tensor]:
    """The S latents of x, [B, C, ...] for one, [B, 1, n] for each of several."""
    if len(step.shapes) == 1:
        return [packed]
    return list(packed.split([math.prod(shape[1:]) for shape in step.shapes], -1))


def _sounds(step: StepCall) -> tuple[bool, ...]:
    """Which parts are sound: the video is packed first."""
    return tuple(i > 0 for i in range(len(step.shapes)))
