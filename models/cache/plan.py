"""What a step cache will do in a run, before the run: which calls run, which are forecast and from what."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..host import Patch, patches_of
from ..host.rehearsal import Ahead, function_of, look_ahead
from .dry_run import Call, Does, DryRun
from .history_size import entry_bytes
from .samplers import why_refused
from .step_cache import Settled, StepCache


@dataclass(frozen=True)
class Plan:
    """settled: what the run will go by    why: why no call can be left out, None when some can or may be

    blocks: what the method says of the blocks that run, "" when it leaves whole evaluations out
    entries: outputs kept at once for one prompt, at most    entry: bytes of one, None when the latent is not known
    """

    cache: StepCache
    ahead: Ahead
    settled: Settled
    calls: tuple[Call, ...]
    why: str | None
    blocks: str
    entries: int
    entry: int | None

    def count(self, does: Does) -> int:
        """Model calls that run, are forecast, or depend on what the run shows."""
        return sum(call.does == does for call in self.calls)

    @property
    def saving(self) -> tuple[float, float]:
        """Share of the model calls that is forecast: at least, at most."""
        sure, open_ = self.count("forecast"), self.count("depends")
        return sure / max(len(self.calls), 1), (sure + open_) / max(len(self.calls), 1)

    def history(self, prompts: int) -> int | None:
        """Bytes kept at once, None when the size of the latent is not known. prompts: evaluated in each call"""
        return None if self.entry is None else self.entries * self.entry * prompts


def plans_of(model, sigmas: Tensor, sampler, latent: dict | None = None) -> list[Plan]:
    """The plan of each step cache on a MODEL, the outermost first, as if it were the only one.

    sigmas: [steps + 1]
    sampler: a name of core's, or a SAMPLER
    latent: a LATENT, for the size of the history
    raises: ValueError for a schedule without a step
    """
    if len(sigmas) < 2:
        raise ValueError(f"a schedule has two sigmas or more, where steps begin and end; this one has {len(sigmas)}.")
    caches = [patch for patch in patches_of(model) if isinstance(patch.method, StepCache)]
    ahead = look_ahead(model, sigmas, sampler, why_refused(function_of(sampler)) is None, latent)
    return [plan_of(patch, ahead) for patch in caches]


def plan_of(patch: Patch, ahead: Ahead) -> Plan:
    """The plan of one cache. patch: as `attach_step` has put it on the model"""
    cache, dry = patch.method, DryRun(patch, ahead)
    settled, why = dry.settle()
    entry = entry_bytes(ahead, settled.site, cache.method.blocks)
    if why:
        steps = dry.steps()
        calls = tuple(Call(step.forward.position.step, step.forward.position.sigma, "run", "refused") for step in steps)
        return Plan(cache, ahead, settled, calls, why, "", 0, entry)
    calls = tuple(dry.calls(settled))
    why = None if any(call.does != "run" for call in calls) else why_none(settled, ahead.schedule.steps)
    return Plan(cache, ahead, settled, calls, why, dry.blocks, dry.entries, entry)


def why_none(settled: Settled, steps: int) -> str:
    """Why nothing is left out although nothing forbids it."""
    if settled.first + settled.last >= steps:
        return f"the first {settled.first} and the last {settled.last} steps always run, which are all of {steps}"
    if settled.pace.foreseen(settled.pace.begin(), 1):
        return "the schedule runs every step"
    return "too few outputs are kept before the last steps, which always run"
