"""Going around blocks: what a span of them adds to the streams is kept, and added again without running them.

The sum takes the place of what leaves the last block of the span. So what a model adds between two blocks of the span
(hints of a control network) is dropped with them, for the kept difference has it already, and what it adds behind the
span stays live.
"""
# D blocks of a model, in all stacks

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..block_visits import Streams, visiting_blocks
from .history import Weigh
from .job import Job
from .registry import CacheMethod
from .sites import joined, rows_of, why_no_blocks, why_no_rows
from .weights import newton

FORECASTS = ("reuse", "linear")


class Addition(CacheMethod):
    """A method that forecasts what blocks add to the streams: as it was last, or by a line through the last two."""

    blocks: ClassVar[bool] = True
    forecast: str = "linear"

    @property
    def keeps(self) -> int:
        return 1 + FORECASTS.index(self.forecast)

    def weigh(self, us: Sequence[float], u: float) -> list[float]:
        return newton(us, u, FORECASTS.index(self.forecast))


def forecast_input(io):
    """The widget of `Addition.forecast`; `io` is ComfyUI's node schema module."""
    return io.Combo.Input("forecast", options=list(FORECASTS), default="linear",
                          tooltip="What the blocks add: as it was last, or a line through the last two.")  # fmt: skip


def stack_sizes(job: Job) -> list[int]:
    """Blocks of each stack that has streams, in order of execution."""
    return [len(getattr(job.step.model, stack, ())) for stack in job.step.forward.family.streams]


def in_stacks(sizes: Sequence[int], start: int, stop: int) -> list[range]:
    """The blocks start..stop cut where one stack ends and the next begins: there the streams change their form."""
    cut, first = [], 0
    for size in sizes:
        piece = range(max(start, first), min(stop, first + size))
        cut += [piece] if piece else []
        first += size
    return cut


@dataclass
class Detour:
    """One forward through the spans (what they add is kept) or around them (what they add is forecast).

    spans: blocks, each span within one stack
    kind: under which the differences are kept
    around: True to skip; may be set until the first block of a span
    """

    job: Job
    spans: list[range]
    kind: str
    weigh: Weigh
    around: bool
    _open: range | None = None   # the span that the forward is in
    _skipping: bool = False
    _held: tuple[Tensor, ...] = field(default=(), repr=False)   # going through: what came in; around: what goes out

    def proceed(self, visit: Callable | None = None) -> Tensor:
        """Run the model. visit: in place of `self.visit`. returns: the denoised output"""
        step = self.job.step
        with visiting_blocks(step.model, step.forward.family, visit or self.visit):
            out = step.proceed()
        if self._open is None or not self._skipping:
            return out
        # another pack's patch took the last block of a span that had been left out so far: the model runs after all
        self._open, self.around = None, False
        return self.proceed()

    def visit(self, index: int, streams: Streams, run: Callable[..., Streams]) -> Streams:
        span = next((span for span in self.spans if index in span), None)
        if span is not None and index == span.start:
            self._enter(span, streams)
        if span is None or span != self._open:   # also where another pack's patch took the first block of the span
            return run(*streams)
        if self._skipping:
            self.job.step.forward.passed(index)
        out = streams if self._skipping else run(*streams)
        return self._leave(span, out) if index == span[-1] else out

    def _enter(self, span: range, streams: Streams) -> None:
        step = self.job.step
        parts, sounds = rows_of(step, streams)
        found = self.job.forecast(self.weigh, sounds, parts[0], f"{self.kind} {span.start}") if self.around else ()
        # a text that was made longer to be batched with another has fewer rows alone: then the blocks run
        self._open, self._skipping = span, self.around and [d.shape for d in found] == [x.shape for x in parts]
        if self._skipping:
            self._held = tuple(x + d for x, d in zip(parts, found, strict=True))
        else:
            self._held = tuple(part.clone() for part in parts)   # some blocks write into what they get

    def _leave(self, span: range, out: Streams) -> Streams:
        held, self._held, self._open = self._held, (), None
        if self._skipping:
            return joined(self.job.step, held, out)
        parts, sounds = rows_of(self.job.step, out)
        added = tuple(now - before for now, before in zip(parts, held, strict=True))
        self.job.keep(added, sounds, f"{self.kind} {span.start}")
        return out


def why_no_spans(job: Job) -> str | None:
    """Why what blocks add cannot be kept in this run."""
    return why_no_blocks(job.step) or why_no_rows(job.step)


def kept(job: Job, spans: list[range], kind: str) -> bool:
    """True when every branch has what each span adds, kept in this stretch of the run."""
    return all(job.ready(1, f"{kind} {span.start}") for span in spans)


def forget(job: Job, spans: list[range], kind: str) -> None:
    """Give back the memory of differences that are not used again."""
    for span in spans:
        for branch in job.step.forward.branches:
            job.track(branch, f"{kind} {span.start}").clear()


def say_blocks(job: Job, skipped: int) -> None:
    """Tell how many block forwards ran so far. skipped: blocks that one forecast leaves out"""
    ledger, depth = job.ledger, sum(stack_sizes(job))
    total = ledger.seen * depth
    job.step.say("blocks", f"{total - (ledger.seen - ledger.ran) * skipped} of {total}")
