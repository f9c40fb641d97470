"""Sparse-vDiT (arXiv 2506.03065): each head runs one of a few fixed patterns, which a calibration has chosen for it.

The calibration is `calibrate.py`, the patterns are in `patterns.py`; both say where they differ. A table by places in
the noise range, where the paper has one by steps. The density is met over the layers, heads and steps of a whole run,
not in each call: that heads differ is what the method lives on. Of L x H heads in 10 bins it is met to about
0.3 / (10 L H); dense steps and layers are not counted, so the rest may lie off when those are unlike it.

Tables of reference frames (Efficient-vDiT, arXiv 2502.06155) run here too: one pattern for all heads of a layer.
"""
# B batch   H heads   K blocks   V video blocks   C longest list   L calibrated layers   P patterns

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from .job import Job
from .pattern_choice import choose
from .pattern_lists import Groups, PatternLists
from .pattern_table import Network, PatternTable
from .registry import Method, method

LINK = "INTERSPATIAL_SPARSE_PATTERN"


@method("sparse_vdit")
@dataclass(frozen=True)
class SparseVDiT(Method):
    """density: share of the video-to-video blocks over a whole run, see above; 0: the choice of the calibration
    pattern: the table of a calibration; its token order and block side are used, whatever the call's are
    """

    density: float = 0.0
    pattern: PatternTable | None = None

    label: ClassVar[str] = "Sparse-vDiT"
    summary: ClassVar[str] = "gives each head the fixed pattern that a calibration has found for it"
    own_rule: ClassVar[str] = "pattern"
    steerable: ClassVar[bool] = False  # a density is met over a run, not in a call

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly, over all heads, layers and steps of a "
                           "run: patterns are chosen anew from the calibrated errors. Lower is faster and further from "
                           "dense, 0.3 typical. 0: the density of the calibration."),
            io.Custom(LINK).Input("pattern", tooltip="From Calibrate Sparse Pattern or Load Sparse Pattern, made with "
                                  "this model. Its token order and block side count, not those of this node."),
        ]  # fmt: skip

    def why_not(self, call: AttentionCall) -> str | None:
        if self.pattern is None:
            return "no sparse pattern is connected"
        if reason := self.pattern.why_not(Network.of(call)):
            return reason
        return None if call.layer in self.pattern.layers else "a layer that was not calibrated"

    def plan(self, job: Job) -> BlockPlan:
        call = job.call
        lists, number = self._lists(call), self.pattern.bin_of(call.forward.position.percent)
        layer = self.pattern.layers.index(call.layer)
        choice = self._choice(call, lists.prices, job.density)  # here: a factory may not ask for state itself

        def group() -> Groups:
            heads = choice[number, layer].tolist()
            return [
                (pattern, torch.tensor([h for h, p in enumerate(heads) if p == pattern], device=call.q.device))
                for pattern in sorted(set(heads))
            ]

        key = (self, "heads", job.density, number)
        groups = call.run.state(key, str(call.q.device), call.layer, call.layout.key, None, group)
        return lists.plan(groups, layer, call.q.shape[0])

    def _lists(self, call: AttentionCall) -> PatternLists:
        order = self.pattern.blocks.of(call)

        def build() -> PatternLists:
            return PatternLists.of(self.pattern, order, call.layout)

        return call.run.state((self, "lists"), str(call.q.device), -1, call.layout.key, None, build)

    def _choice(self, call: AttentionCall, prices: Tensor, density: float | None) -> Tensor:
        """int8 [bins, L, H]; weighted by the noise of this run's steps."""
        table = self.pattern
        if density is None:
            return table.choice

        def build() -> Tensor:
            schedule = call.run.schedule
            bins = [table.bin_of(schedule.percent_of(sigma)) for sigma in schedule.sigmas[: schedule.steps]]
            weights = torch.bincount(torch.tensor(bins), minlength=table.bins).float()
            return choose(table.errors, prices, density, weights, by_layer=table.by_layer)

        return call.run.state((self, "choice", density), None, -1, call.layout.key, None, build)
