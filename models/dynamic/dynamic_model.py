"""Routers on a model: a step method that lets each evaluation run with the parts that the routers ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..host import StepCall
from ..host.hooks import PATCHES
from ..schedule import Position, Schedule
from . import flux, wan
from .plan import BlockPlan, plans, ramp
from .router_file import RouterFile
from .routers import BlockRouter
from .width import Cuts


class Blocks(Protocol):
    """What a module that knows the blocks of a model has: `wan`, `flux`."""

    FAMILIES: tuple[str, ...]
    why_not_fit: Callable[[nn.Module, Sequence[BlockRouter], int], str | None]
    why_not_layers: Callable[[nn.Module], str | None]
    embeddings: Callable[[nn.Module, Sequence[float], torch.device], Tensor]
    dynamic_blocks: Callable[..., AbstractContextManager[None]]


LAYOUTS: dict[str, Blocks] = {"dydit": wan, "dyflux": flux}


@dataclass
class Memory:
    """What is kept of a run on one device: the routers and indices there, and the plans by noise level."""

    routers: list[BlockRouter]
    cut: Cuts
    plans: dict[float, list[BlockPlan]] = field(default_factory=dict)


@dataclass(frozen=True)
class DynamicModel:
    """token_share: share of the tokens in every step and block; None: what the file says"""

    file: RouterFile
    token_share: float | None = None

    def why_not(self, step: StepCall) -> str | None:
        if step.compiled:
            return "torch.compile is at work, and sizes that change from step to step would compile the model anew"
        if step.forward.position is None:
            return "the guider of this run shows no sampler calls"
        if not step.run.schedule.flow:
            return "routers know the noise levels of rectified flow, and this model has others"
        if reason := self.why_not_model(step.model, step.forward.family and step.forward.family.name):
            return reason
        return self._blocks.why_not_layers(step.model)

    def why_not_model(self, model: nn.Module, family: str | None) -> str | None:
        """Why the file is not for this model, whatever the run."""
        if family not in self._blocks.FAMILIES:
            return "the router file is for another kind of model"
        return self._blocks.why_not_fit(model, self.file.routers, self.file.groups)

    def evaluate(self, step: StepCall) -> Tensor:
        device = step.x.device
        memory = step.state(None, lambda: Memory([router.to(device) for router in self.file.routers], Cuts(device)))
        plan = self.plan(memory, step.model, step.run.schedule, step.forward.position, device)
        if reason := why_all_heads(step):
            plan = [replace(block, heads=None) for block in plan]
            step.say("all heads", reason)
        self._tell(step, plan)
        with self._blocks.dynamic_blocks(step.model, memory.routers, plan, self.file.groups, memory.cut):
            return step.proceed()

    def plan(self, memory: Memory, model: nn.Module, schedule: Schedule, place: Position,
             device: torch.device) -> list[BlockPlan]:  # fmt: skip
        """Plans of the whole schedule at first use; those of sigmas between its steps when they come."""
        sigma = round(place.sigma, 6)
        if sigma not in memory.plans:
            wanted = {sigma, *(round(s, 6) for s in schedule.sigmas[:-1])} - memory.plans.keys()
            e = self._blocks.embeddings(model, ordered := sorted(wanted), device)
            shares = [self._shares(s, schedule) for s in ordered]
            memory.plans |= zip(ordered, plans(memory.routers, e, shares), strict=True)
        return memory.plans[sigma]

    @property
    def _blocks(self) -> Blocks:
        return LAYOUTS[self.file.layout]

    def _shares(self, sigma: float, schedule: Schedule) -> Sequence[float]:
        """One share a block."""
        if self.token_share is None and self.file.shares is not None:
            return self.file.shares.at(sigma)
        share = ramp(schedule.percent_of(sigma)) if self.token_share is None else self.token_share
        return (share,) * len(self.file.routers)

    def _tell(self, step: StepCall, plan: list[BlockPlan]) -> None:
        routers = self.file.routers
        heads = [_part(p.heads, r.heads) for p, r in zip(plan, routers, strict=True) if r.heads]
        groups = [_part(p.groups, r.groups) for p, r in zip(plan, routers, strict=True) if r.groups]
        tokens = [p.share for p, r in zip(plan, routers, strict=True) if r.tokens]
        for name, shares in (("heads", heads), ("MLP", groups), ("MLP tokens", tokens)):
            if shares:
                step.run.report.note(step.tally, **{name: sum(shares) / len(shares)})


def why_all_heads(step: StepCall) -> str | None:
    """Why the heads must be the same in all steps, or None."""
    for patch in step.options.get(PATCHES, ()):
        if patch.hook == "attention" and patch.card.kind not in ("sparse", "quant"):
            return f"for {patch.card.name}, which looks at each"
        method = getattr(patch.method, "method", None)
        if getattr(method, "remembers", False) or getattr(method, "pattern", None) is not None:
            return f"for {patch.card.name}, which keeps something for each"
    return None


def _part(kept: tuple[int, ...] | None, router) -> float:
    return 1.0 if kept is None else len(kept) / (len(router.bias) + 1)
