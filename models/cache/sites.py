"""Where a forecast is put back: the model's output, the last block's, or every part of every block.

    output      the velocity (or the denoised latent) of the whole model; smallest history, works on every model, and
                with torch.compile. Nothing of the model runs
    last block  the hidden states before the head, which runs with the step's own time: no block runs
    modules     the attention and feed-forward outputs inside each block; gates and norms run. A history of gigabytes

What a model adds behind or between its blocks stays live at the last two: a control network, VACE's hints (made by
blocks of their own, which run), the voices of Wan S2V and Dancer, the faces of Animate.
"""
# S rows of a packed sequence

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..block_visits import Streams, blocks_of, visiting_blocks, visiting_modules, without_prefetch
from ..layout import TokenLayout
from .history import Weigh
from .job import Job, Parts
from .output import Output

if TYPE_CHECKING:
    from ..host import StepCall

PACKED = (False, True, False)   # which parts of a packed sequence are sound: what comes first, sound, video


class Site(Protocol):
    def why_not(self, step: StepCall) -> str | None:
        """Why nothing can be put back here in this evaluation."""
        ...

    def ready(self, job: Job, least: int) -> bool:
        """True when every branch has at least `least` entries that continue here."""
        ...

    def record(self, job: Job) -> Tensor:
        """Run the model, keep what is forecast later. returns: the model's output, untouched"""
        ...

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        """The model's output by forecast."""
        ...


class LastBlock:
    """The hidden states that leave the last block; earlier blocks hand their input on."""

    def why_not(self, step: StepCall) -> str | None:
        return why_no_blocks(step) or why_no_rows(step)

    def ready(self, job: Job, least: int) -> bool:
        return job.ready(least)

    def record(self, job: Job) -> Tensor:
        def visit(index: int, streams: Streams, run) -> Streams:
            out = run(*streams)
            if index == last:
                parts, sounds = rows_of(step, out)
                first = unread(step)
                job.keep(parts[first:], sounds[first:])
            return out

        step = job.step
        last = len(blocks_of(step.model, step.forward.family)) - 1
        with visiting_blocks(step.model, step.forward.family, visit):
            return step.proceed()

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        """Where another patch took the last block, or the text has another length, the model runs after all."""
        step, placed = job.step, False

        def visit(index: int, streams: Streams, run) -> Streams:
            nonlocal placed
            if index < last:
                return streams
            parts, sounds = rows_of(step, streams)
            first = unread(step)
            found = job.forecast(weigh, sounds[first:], parts[0])
            placed = [x.shape for x in found] == [x.shape for x in parts[first:]]
            return joined(step, (*parts[:first], *found), streams) if placed else streams

        last = len(blocks_of(step.model, step.forward.family)) - 1
        with without_prefetch(step.model), visiting_blocks(step.model, step.forward.family, visit):
            out = step.proceed()
        return out if placed else self.record(job)


class Modules:
    """The output of every part in `family.modules`, each with a history of its own; what is between them runs."""

    def why_not(self, step: StepCall) -> str | None:
        if reason := why_no_blocks(step):
            return reason
        if not step.forward.family.modules:
            return f"attention and feed-forward of {step.forward.family.name} cannot be forecast by themselves"
        return why_no_rows(step)

    def ready(self, job: Job, least: int) -> bool:
        family = job.step.forward.family
        first = blocks_of(job.step.model, family)[0][0]
        return job.ready(least, _part(0, next(name for name in family.modules if hasattr(first, name))))

    def record(self, job: Job) -> Tensor:
        def visit(index: int, name: str, run) -> Tensor | Streams:
            out = run()
            parts, sounds = rows_of(job.step, out if isinstance(out, tuple) else (out,))
            job.keep(parts, sounds, _part(index, name))
            return out

        with visiting_modules(job.step.model, job.step.forward.family, visit):
            return job.step.proceed()

    def replay(self, job: Job, weigh: Weigh) -> Tensor:
        step, branch = job.step, job.step.forward.branches[0]

        def visit(index: int, name: str, run) -> Tensor | Streams:
            kind = _part(index, name)
            if not job.ready(1, kind):   # it was left out when the others were kept
                return run()
            count = len(job.track(branch, kind).entries[-1])
            sounds = PACKED if packed(step) else (False,) * count
            found = job.forecast(weigh, sounds, step.x, kind)
            if packed(step):
                return torch.cat(found)
            return found if count > 1 else found[0]

        with without_prefetch(step.model), visiting_modules(step.model, step.forward.family, visit):
            return step.proceed()


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


def packed(step: StepCall) -> bool:
    """True where sound and video are rows of one sequence, [S, C]."""
    expected = step.forward.expected
    return isinstance(expected, TokenLayout) and any(segment.kind == "audio" for segment in expected.segments)


def why_no_rows(step: StepCall) -> str | None:
    """Why sound with a clock of its own cannot be told from the video in one sequence."""
    expected = step.forward.expected
    return expected if step.forward.family.audio_clock and isinstance(expected, str) else None


def unread(step: StepCall) -> int:
    """Leading parts of `rows_of` that the head does not read."""
    return 1 if packed(step) else 0


def rows_of(step: StepCall, streams: Streams) -> tuple[Parts, tuple[bool, ...]]:
    """As `flat`; a packed sequence comes as what is before the sound, the sound, and the video, which is the end."""
    if not packed(step):
        return flat(streams)
    *_, sound, video = step.forward.expected.segments
    return streams[0].split((sound.start, len(sound), len(video))), PACKED


def joined(step: StepCall, parts: Parts, like: Streams) -> Streams:
    """`rows_of` undone."""
    return (torch.cat(parts),) if packed(step) else shaped(parts, like)


def _part(index: int, name: str) -> str:
    return f"{name} {index}"


SITES: dict[str, Site] = {"output": Output(), "last block": LastBlock(), "modules": Modules()}


def site_of(job: Job) -> Site:
    return SITES[job.settled.site]
