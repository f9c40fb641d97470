"""A step cache on a model: when it may leave the model out, what decides, what the report says."""
from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from .clock import Clock
from .history import Where
from .job import Job
from .pace import Fixed, Pace
from .presets import Preset, preset_of
from .registry import CacheMethod
from .samplers import sampler_class, why_refused
from .sites import SITES, site_of

if TYPE_CHECKING:
    from ..host import StepCall


@dataclass(frozen=True)
class Settled:
    """Everything that was left to the preset, decided for one run.

    velocity: forecast the velocity, else the denoised latent; see `sites.Output`
    """

    preset: Preset
    pace: Pace
    first: int
    last: int
    site: str
    history: Where
    velocity: bool


@dataclass
class Memory:
    """What decides for the evaluations of one latent shape and window, on all devices that share them.

    step: the step that was decided last    ran: the last step in which the model ran
    """

    call: int = -1
    step: int = -1
    runs: bool = True
    ran: int = -1
    generation: int = 0
    other_role: int = -1
    pace: object = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class StepCache:
    """What `host.attach_step` takes. Settings that are None are the preset's then.

    pace: which steps run, between the first and the last ones that always do
    """

    method: CacheMethod
    pace: Pace | None = None
    first: int | None = None
    last: int | None = None
    site: str | None = None
    history: Where = "device"

    def why_not(self, step: StepCall) -> str | None:
        if step.forward.position is None:
            return "the guider of this run shows no sampler calls"
        if step.other_cache:
            return f"{step.other_cache} is on the model too, and neither sees what the other one leaves out"
        if reason := why_refused(step.run.schedule.sampler):
            return reason
        job = self.job(step)
        if self.pace is None and self.first is None and job.settled.preset.why:
            return job.settled.preset.why
        return (None if self.method.blocks else site_of(job).why_not(step)) or self.method.why_not(job)

    def settled(self, step: StepCall) -> Settled:
        """Made at the first evaluation of a run."""

        def settle() -> Settled:
            schedule = step.run.schedule
            preset = preset_of(step.forward.family, schedule)
            return Settled(
                preset,
                self.pace or Fixed(preset.interval),
                preset.first if self.first is None else self.first,
                preset.last if self.last is None else self.last,
                self.site or self._site(step, preset),
                self.history,
                sampler_class(schedule.sampler) != "noisy",
            )

        return step.run.state((step.owner, "settled"), None, -1, None, None, settle)

    @staticmethod
    def _site(step: StepCall, preset: Preset) -> str:
        """The preset's site, or the output where that one is refused: what the user chose is never changed."""
        if reason := SITES[preset.site].why_not(step):
            step.say("put back at", f"output, not {preset.site}: {reason}")
            return "output"
        return preset.site

    def job(self, step: StepCall) -> Job:
        clock = step.run.state((step.owner, "clock"), None, -1, None, None, Clock)
        return Job(step, clock.tick(step.run), self.settled(step), self.method.axis, self.method.keeps)

    def evaluate(self, step: StepCall) -> Tensor:
        """returns: the denoised output, [B, C, ...]"""
        job = self.job(step)
        shape, window = tuple(step.x.shape[1:]), step.forward.window
        memory = step.run.state((step.owner, "memory"), None, -1, shape, window, Memory)
        if step.role is not None:
            memory.other_role = job.tick.step   # its step runs in full: what a reflection moves is not forecast
            return step.proceed()
        if self.method.decides:
            return self.method.evaluate(job, self._must(job, memory))
        if self._runs(job, memory) or not self.method.ready(job):
            memory.ran = job.tick.step
            job.ran()
            return self.method.record(job)
        job.skipped()
        return self.method.replay(job)

    def _runs(self, job: Job, memory: Memory) -> bool:
        """Decided once for all evaluations of a step, so that prompts, and devices, agree."""
        tick, settled = job.tick, job.settled
        with memory.lock:
            if memory.call == tick.call:
                return memory.runs
            held = memory.step == tick.step and memory.generation == tick.generation
            fresh = memory.generation != tick.generation
            memory.call, memory.step, memory.generation = tick.call, tick.step, tick.generation
            if held:
                return memory.runs
            if memory.pace is None or fresh:
                memory.pace = settled.pace.begin()
            wants = settled.pace.runs(memory.pace, tick.step - memory.ran, job)
            memory.runs = fresh or wants or self._must(job, memory)
            return memory.runs

    @staticmethod
    def _must(job: Job, memory: Memory) -> bool:
        """True in the first and the last steps, and where another role was evaluated: they run whatever is decided."""
        tick, settled = job.tick, job.settled
        always = not settled.first <= tick.step < tick.steps - settled.last
        return always or memory.other_role == tick.step
