"""Where a forecast is put back: the model's output, the last block's, or every part of every block.

    output      the velocity (or the denoised latent) of the whole model; smallest history, works on every model, and
                with torch.compile. Nothing of the model runs
    last block  the hidden states before the head, which runs with the step's own time: no block runs
    modules     the attention and feed-forward outputs inside each block; gates and norms run. A history of gigabytes
"""
from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..block_visits import Streams, blocks_of, visiting_blocks
from ..host import StepCall
from .history import Weigh
from .job import Job, Parts


class Site(Protocol):
    def why_not(self, job: Job) -> str | None:
        """Why nothing can be put back here in this run."""
        ...

    def record(self, job: Job) -> Tensor:
        """Run the model, keep what is forecast later. returns: the model's output, untouched"""
        ...

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        """The model's output by forecast."""
        ...


class Output:
    """What is kept is d = (x - denoised) / sigma, the velocity of a flow model, or the denoised latent itself.

    With noise added at every step the velocity jumps with it, and the denoised latent does not.
    """

    def why_not(self, job: Job) -> str | None:
        return None

    def record(self, job: Job) -> Tensor:
        denoised = job.step.proceed()
        kept = (job.step.x - denoised) / job.tick.sigma if job.settled.velocity else denoised.clone()
        parts, sounds = self._split(job, kept.float())
        slope = job.sound_clock()[1]
        parts = [part / slope if sound and slope != 1.0 else part for part, sound in zip(parts, sounds, strict=True)]
        job.keep(tuple(parts), sounds)
        return denoised

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        x, sounds = job.step.x, self._sounds(job)
        slope = job.sound_clock()[1]
        parts = job.forecast(weigh, sounds, x)
        flat = [p * slope if sound and slope != 1.0 else p for p, sound in zip(parts, sounds, strict=True)]
        found = flat[0] if len(flat) == 1 else torch.cat(flat, -1)
        return (x - job.tick.sigma * found if job.settled.velocity else found).to(x.dtype)

    def _sounds(self, job: Job) -> tuple[bool, ...]:
        """The video is the first of the latents that are packed into one row, the rest is sound."""
        return tuple(i > 0 for i in range(len(job.step.shapes)))

    def _split(self, job: Job, packed: Tensor) -> tuple[list[Tensor], tuple[bool, ...]]:
        shapes = job.step.shapes
        if len(shapes) == 1:
            return [packed], (False,)
        return list(packed.split([math.prod(shape[1:]) for shape in shapes], -1)), self._sounds(job)


class LastBlock:
    """The hidden states that leave the last block; earlier blocks hand their input on."""

    def why_not(self, job: Job) -> str | None:
        return why_no_blocks(job.step)

    def record(self, job: Job) -> Tensor:
        def visit(index: int, streams: Streams, run) -> Streams:
            out = run(*streams)
            if index == last:
                parts, sounds = flat(out)
                job.keep(tuple(part.clone() for part in parts), sounds)
            return out

        last = len(blocks_of(job.step.model, job.step.forward.family)) - 1
        with visiting_blocks(job.step.model, job.step.forward.family, visit):
            return job.step.proceed()

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        def visit(index: int, streams: Streams, run) -> Streams:
            if index < last:
                return streams
            parts, sounds = flat(streams)
            return shaped(job.forecast(weigh, sounds, parts[0]), streams)

        last = len(blocks_of(job.step.model, job.step.forward.family)) - 1
        with visiting_blocks(job.step.model, job.step.forward.family, visit):
            return job.step.proceed()


def why_no_blocks(step: StepCall) -> str | None:
    """Why the blocks of this forward cannot be skipped, None when they can."""
    family = step.forward.family
    if family is None:
        return "the blocks of a model that this pack does not know cannot be skipped"
    if step.compiled:
        return "the model is compiled: its blocks cannot be skipped one by one, only whole evaluations"
    if not blocks_of(step.model, family):
        return f"the blocks of {family.name} cannot be skipped"
    return step.forward.whole


def flat(streams: Streams) -> tuple[Parts, tuple[bool, ...]]:
    """The tensors of nested streams, and which of them are sound: the second of a pair inside one stream."""
    parts, sounds = [], []
    for stream in streams:
        inner = stream if isinstance(stream, tuple) else (stream,)
        parts += inner
        sounds += [i > 0 for i in range(len(inner))]
    return tuple(parts), tuple(sounds)


def shaped(parts: Parts, like: Streams) -> Streams:
    """`flat` undone."""
    rest = list(parts)
    return tuple(tuple(rest.pop(0) for _ in s) if isinstance(s, tuple) else rest.pop(0) for s in like)


SITES: dict[str, Site] = {"output": Output(), "last block": LastBlock()}


def site_of(job: Job) -> Site:
    return SITES[job.settled.site]
