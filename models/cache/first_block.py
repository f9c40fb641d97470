"""First Block Cache: the first blocks run and tell whether the rest is worth running.

What they add to the stream is compared with what they added in the last full run; with little change, what the other
blocks add is taken from there. The test of WaveSpeed and Cache-DiT (DBCache with Bn = 0), of all streams together.
"""
# D blocks of the model

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import ClassVar

import torch
from torch import Tensor

from ..block_visits import Streams
from .history import Track
from .job import Job, Parts
from .registry import cache
from .sites import flat
from .spans import Addition, Detour, forecast_input, in_stacks, kept, say_blocks, stack_sizes, why_no_spans

KIND = "rest"


@dataclass
class Choice:
    """What the evaluations of one latent shape and window agree on, whatever device they are on.

    call: the sampler call that was decided last
    around: the answer: leave the rest out
    made: set when the answer is there
    skips: forecasts in a row
    branch, start: what the first blocks added to its rows in the last full run
    changes: all that were measured
    """

    call: int = -1
    around: bool = False
    made: Event = field(default_factory=Event)
    skips: int = 0
    branch: Hashable = None
    start: Track = field(default_factory=lambda: Track(1))
    changes: list[float] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def claim(self, call: int) -> bool:
        """True for the first evaluation of a call, which decides. The others wait here until it has."""
        with self.lock:
            first = self.call != call
            if first:
                self.call, self.around, self.made = call, False, Event()
            made = self.made
        if not first:
            made.wait()
        return first


@cache("first_block")
@dataclass(frozen=True)
class FirstBlock(Addition):
    """threshold: relative L1 change below which the rest is left out
    first_blocks: how many blocks always run, all of the first stack
    max_skips: forecasts in a row, 0: no limit
    forecast: what the rest adds: as it was last, or a line through the last two
    """

    threshold: float = 0.08
    first_blocks: int = 1
    max_skips: int = 3
    forecast: str = "linear"   # 53.1 dB against 45.6, two clips of the tiny model, 20 steps, threshold 0.08

    label: ClassVar[str] = "First Block"
    summary: ClassVar[str] = "runs the first blocks and looks at their change"
    decides: ClassVar[bool] = True

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("threshold", default=0.08, min=0.0, max=1.0, step=0.01,
                           tooltip="Change of the first blocks below which the rest is left out. Higher is faster; "
                                   "the report tells what changes were seen."),
            io.Int.Input("first_blocks", default=1, min=1, max=16,
                         tooltip="Blocks that always run. More of them judge better and save less."),
            io.Int.Input("max_skips", default=3, min=0, max=50, tooltip="Forecasts in a row. 0: no limit."),
            forecast_input(io),
        ]

    def why_not(self, job: Job) -> str | None:
        if reason := why_no_spans(job):
            return reason
        return None if self._count(job) else "no block lies behind the first one"

    def evaluate(self, job: Job, must: bool) -> Tensor:
        """Run the first blocks, then the rest or its forecast. must: this step runs in full"""
        step, sizes = job.step, stack_sizes(job)
        where = (None, -1, tuple(step.x.shape[1:]), step.forward.window)
        tracks = job.ledger.tracks

        def make() -> Choice:
            tracks.append((choice := Choice()).start)
            return choice

        choice = step.run.state((step.owner, "choice"), *where, make)
        first = choice.claim(job.tick.call)
        spans = in_stacks(sizes, self._count(job), sum(sizes))
        able = not must and kept(job, spans, KIND)
        detour = Detour(job, spans, KIND, self.weigh, choice.around and able)
        try:
            out = detour.proceed(self._deciding(detour, choice, able) if first else None)
        finally:
            if first:
                choice.made.set()
        (job.skipped if detour.around else job.ran)()
        say_blocks(job, sum(map(len, spans)))
        return out

    def _deciding(self, detour: Detour, choice: Choice, able: bool) -> Callable[..., Streams]:
        """The visitor of the evaluation that decides. able: the rest could be forecast"""
        job, last = detour.job, self._count(detour.job) - 1
        before: list[Tensor] = []

        def visit(index: int, streams: Streams, run: Callable[..., Streams]) -> Streams:
            if index > last:
                return detour.visit(index, streams, run)
            if index == 0:
                before.extend(part.clone() for part in _judged(job, streams)[1])
            out = run(*streams)
            if index == last:
                branch, now = _judged(job, out)
                added = tuple(b - a for a, b in zip(before, now, strict=True))
                detour.around = self._decide(choice, branch, job.tick.generation, added, able)
                choice.made.set()
                if choice.changes:
                    job.step.say("changes", f"{min(choice.changes):.3f} to {max(choice.changes):.3f}")
            return out

        return visit

    def _decide(self, choice: Choice, branch: Hashable, generation: int, added: Parts, able: bool) -> bool:
        known = choice.start.entries[-1] if choice.start.ready(generation, 1) and choice.branch == branch else ()
        alike = [x.shape for x in known] == [x.shape for x in added]
        if able and alike and not 0 < self.max_skips <= choice.skips:
            choice.changes.append(change(added, known))
            choice.around = choice.changes[-1] < self.threshold
        choice.skips = choice.skips + 1 if choice.around else 0
        if not choice.around:
            choice.branch = branch
            choice.start.push(generation, (0.0,), added)
        return choice.around

    def _count(self, job: Job) -> int:
        """The blocks that always run; 0 when nothing would be left."""
        sizes = stack_sizes(job)
        return min(self.first_blocks, next(size for size in sizes if size), sum(sizes) - 1)


def change(now: Parts, before: Parts) -> float:
    """Relative L1 distance of all parts together, NaN where `before` is all zero. Waits for the device once."""
    top = sum((a - b).abs().sum(dtype=torch.float32) for a, b in zip(now, before, strict=True))
    return (top / sum(b.abs().sum(dtype=torch.float32) for b in before)).item()


def _judged(job: Job, streams: Streams) -> tuple[Hashable, Parts]:
    """The branch whose change decides, the positive prompt's where it is there, and its rows."""
    branch, parts = min(job.by_branch(flat(streams)[0]), key=lambda pair: pair[0].cond)
    return branch.id, parts
