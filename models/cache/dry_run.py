"""A run of a step cache without a model: the cache itself is asked, call by call.

It sees a latent of one number, and a model with as many blocks as the real one, which do nothing. So its decisions are
those of the run, but where they depend on what the run shows.
"""
from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from ..block_visits import blocks_of
from ..forward import Branch, Forward
from ..host import Patch, StepCall
from ..host.hooks import ROLE
from ..host.rehearsal import Ahead
from ..layout import arrange
from ..report import Report
from ..run import Run
from ..schedule import Tracker
from .history_size import inputs_of
from .job import Job
from .pace import Pace
from .step_cache import Settled, StepCache

Does = Literal["run", "forecast", "depends"]
SOLE = Branch("plan", 0, slice(0, 1))
# MiniMax-H3 writes its layout into the prompt when the run begins: supposed here to be there, as in a run it is
READABLE = arrange([("video", (1, 1, 1))])
NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Call:
    """One model call of the sampler.

    why: why it runs, or cannot be told
    made_of: number of an earlier call, weight of its output in the forecast
    """

    step: int
    sigma: float
    does: Does
    why: str = ""
    made_of: tuple[tuple[int, float], ...] = ()


@dataclass
class Watch:
    """What the cache lets out while it is asked.

    asked: what the pace answered last, None when it was not asked or cannot tell; all calls of a step go by it
    open: the pace cannot tell
    weights: places of the kept outputs, and their weights in the forecast of the call
    """

    asked: bool | None = None
    open: bool = False
    weights: tuple[Sequence[float], Sequence[float]] = ((), ())


@dataclass(frozen=True)
class Foreseen:
    """A pace that answers with what the real one foresees. Where that is nothing, the step runs, for the history."""

    pace: Pace
    watch: Watch

    def begin(self) -> object:
        return self.pace.begin()

    def runs(self, memory: object, gap: int, job: Job) -> bool:
        self.watch.asked = self.pace.foreseen(memory, gap)
        self.watch.open = self.watch.asked is None
        return self.watch.asked is not False


@dataclass
class DryRun:
    """A run of a cache on nothing. entries, blocks: as in `plan.Plan`, after `calls`"""

    patch: Patch
    ahead: Ahead
    entries: int = 0
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.run = Run(self.ahead.schedule, Report())
        self.tally = self.run.report.tally(self.patch, self.patch.card)
        self.model = hollow(self.ahead)

    def settle(self) -> tuple[Settled, str | None]:
        """What the cache settles on with the model itself, and why it stands aside."""
        run = Run(self.ahead.schedule, Report())
        run.begin_call(self.ahead.calls[0])
        step = self._step(run, self.ahead.network)
        why = self.patch.method.why_not(step)
        return self.patch.method.settled(step), why

    def steps(self, cache: StepCache | None = None) -> Iterator[StepCall]:
        """The calls of the sampler. cache: sees the evaluations beside them too"""
        tracker = Tracker(self.ahead.schedule)
        for sigma in self.ahead.calls:
            place = tracker.locate(sigma)
            if cache and place.call == 0 and place.step in self.ahead.reflected:
                self.run.begin_aside(place.step)
                cache.evaluate(self._step(self.run, self.model, {ROLE: "reflection"}))
            self.run.begin_call(sigma)
            yield self._step(self.run, self.model)

    def calls(self, settled: Settled) -> Iterator[Call]:
        """What becomes of each call."""
        cache = self._watched(settled)
        numbers: dict[float, int] = {}   # by place: the call whose output lies there
        generation = 0
        for number, step in enumerate(self.steps(cache)):
            self.watch.weights = (), ()
            job = cache.job(step)
            ran = job.ledger.ran
            cache.evaluate(step)
            self.entries = max(self.entries, sum(len(track) for track in job.ledger.tracks))
            position, fresh = step.forward.position, number == 0 or job.tick.generation != generation
            generation = job.tick.generation
            if job.ledger.ran == ran:
                made_of = tuple((numbers[place], w) for place, w in zip(*self.watch.weights, strict=True) if w)
                yield Call(position.step, position.sigma, "forecast", "", made_of)
                continue
            numbers[job.tick.at(job.axis)] = number
            why = self._why(job, settled, fresh)
            open_ = why == "" and (cache.method.decides or self.watch.open)
            yield Call(position.step, position.sigma, "depends" if open_ else "run", why or self._else(open_))

    @property
    def blocks(self) -> str:
        return self.tally.texts.get("blocks", "")

    def _why(self, job: Job, settled: Settled, fresh: bool) -> str:
        """Why a call had to run, "" when the method or the pace wanted it."""
        if job.tick.step < settled.first:
            return "warm-up"
        if job.tick.step >= job.tick.steps - settled.last:
            return "tail"
        if job.tick.step in self.ahead.reflected:
            return "reflected"
        if fresh:
            return "nothing kept yet" if job.tick.call == 1 else "sigma went up"
        return ""

    def _else(self, open_: bool) -> str:
        if open_:
            return "by the latent" if self.watch.open else "by the model"
        return "interval" if self.watch.asked else "too little kept yet"

    def _watched(self, settled: Settled) -> StepCache:
        """The cache, settled, with a pace and weights that let out what they answer."""
        method = copy.copy(self.patch.method.method)

        def weigh(us: Sequence[float], u: float, *rest) -> list[float]:
            weights = self.patch.method.method.weigh(us, u, *rest)
            self.watch.weights = us, weights
            return weights

        object.__setattr__(method, "weigh", weigh)   # of this copy alone
        pace = Foreseen(settled.pace, self.watch)
        # what a site keeps and puts back is its own business: the calls are the same at all of them
        return replace(self.patch.method, method=method, pace=pace, first=settled.first, last=settled.last,
                       site="output", history="device")  # fmt: skip

    def _step(self, run: Run, network: nn.Module, options: Mapping[str, str] = NONE) -> StepCall:
        x, ahead = torch.zeros(1, 1, 1, 1, 1), self.ahead
        shapes = (tuple(x.shape),)
        whole = ahead.family and ahead.family.unskippable(inputs_of(ahead))
        forward = Forward(ahead.family, READABLE, 1, (SOLE,), run.position, whole=whole)
        about = (network, ahead.compiled, shapes, options)
        return StepCall(x, forward, run, *about, self.patch, self.tally, self._proceed)

    def _proceed(self) -> Tensor:
        """The answer of a model of nothing; its blocks are passed, for methods that visit them."""
        for block, names in blocks_of(self.model, self.ahead.family) if self.ahead.family else ():
            block(**{name: torch.zeros(1, 1, 1, 1, 1) for name in names})
        return torch.zeros(1, 1, 1, 1, 1)


def hollow(ahead: Ahead) -> nn.Module:
    """A model with as many blocks as the real one, which do nothing."""
    model = nn.Module()
    for stack in ahead.family.streams if ahead.family else ():
        blocks = getattr(ahead.network, stack, ())
        real = [*(blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks)]
        setattr(model, stack, nn.ModuleList(nothing_like(type(block))() for block in real))
    return model


@lru_cache
def nothing_like(block: type) -> type[nn.Module]:
    """A class of blocks that hand their streams on, with the parameters of a real one."""

    def forward(self, **streams: Tensor) -> Tensor | tuple[Tensor, ...]:
        return tuple(streams.values()) if len(streams) > 1 else next(iter(streams.values()))

    forward.__signature__ = inspect.signature(block.forward)
    return type("Nothing", (nn.Module,), {"forward": forward})
