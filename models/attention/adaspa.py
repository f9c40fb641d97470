"""AdaSpa (arXiv 2502.21079): a search in exact softmax mass, a few times a run; all steps between keep what it found.

Differs from the paper: searches lie evenly over what is left of the run instead of at steps 10 and 30 of 50 (which is
where two lie there), each prompt and each clip of a batch has blocks of its own, recall is a share of what the search
counted, also when the log-sum-exp is an old one, blocks may be ragged, and dropped blocks may stay as a pooled tail.
"""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..forward import Branch
from ..schedule import Position
from .job import Job
from .presets import FEW_STEPS
from .registry import Method, method
from .search import Followed, FrozenBlocks, dense_with_lse, each_alone, search
from .select import keep_all

# On the tiny model "by recall" was further from dense: 32.3 dB against 36.2 at density 0.2 with a tail, 26.8 against
# 27.4 without. Published is the opposite, without a tail: 29.1 against 28.5 on HunyuanVideo, which has more heads.
HEADS = ("alike", "by recall")
STEADY = 0.005  # change of the density below which frozen blocks still meet it: a half of the widget's step


@dataclass
class Found(Followed):
    """What one branch goes by in one layer.

    first, last: steps of its first and its latest search
    lse: fp16 [B, N, H] of the first; off by 1 % where it is near 20, which weighs the rows of a query block anew by 1 %
    """

    first: int = -1
    last: int = -1
    density: float = 0.0
    blocks: FrozenBlocks | None = None
    lse: Tensor | None = None

    def lacks(self, position: Position, density: float, clips: int, searches: int) -> str:
        """What must come before a sparse call: "dense" (attention and a search), "search" or ""."""
        if self.blocks is None or len(self.lse) != clips:
            return "dense"
        if abs(density - self.density) > STEADY:
            return "search"
        part, before = ((step - self.first) * searches // (position.steps - self.first)
                        for step in (position.step, self.last))  # fmt: skip
        return "search" if part > before else ""


@method("adaspa")
@dataclass(frozen=True)
class AdaSpa(Method):
    """density: share of the video-to-video blocks that is computed exactly, met in the mean over the heads of a clip,
        but for rounding to whole blocks; at least one for each query block. 0: by preset
    searches: in a run; runs of FEW_STEPS or fewer have one
    heads: one of HEADS
    """

    density: float = 0.0
    searches: int = 2
    heads: str = "alike"

    label: ClassVar[str] = "AdaSpa"
    summary: ClassVar[str] = "keeps the blocks that a search in exact attention found, and searches again later"
    steerable: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly. Lower is faster and further from "
                           "dense; 0.2 to 0.3 suits 480p and 720p clips at 20 to 50 steps, 1.0 is dense. 0: the preset "
                           "of the model family."),
            io.Int.Input("searches", default=2, min=1, max=4,
                         tooltip="How often a run searches for the blocks to keep. The first search is a dense step "
                         "that takes half as long again, a later one costs half a dense step. 2 is the paper's; 1 "
                         "suits short runs."),
            io.Combo.Input("heads", options=list(HEADS), default="alike",
                           tooltip="by recall: heads that keep more than 80 % of their softmax mass give half of their "
                           "blocks to those that keep least, as published. alike: every head keeps as many."),
        ]  # fmt: skip

    def attend(self, job: Job) -> Tensor:
        call = job.call
        if job.density == 1:
            return job.run(keep_all(job.order))
        found = [call.state(branch, Found) for branch in call.branches]
        for one in found:
            if one.restarts(call.forward.position.step):
                one.blocks = None
        lacks = {self._lacks(job, one, branch) for one, branch in zip(found, call.branches, strict=True)}
        if len(lacks) > 1:
            return each_alone(job, self.attend)
        if lacks == {"dense"}:
            out, lse = dense_with_lse(job)
            self._search(job, found, lse)
            for one, branch in zip(found, call.branches, strict=True):
                one.first, one.lse = one.last, lse[branch.rows].half()
            return out
        if lacks == {"search"}:
            self._search(job, found, torch.cat([one.lse for one in found]).float())
        return job.run(FrozenBlocks.joined([one.blocks for one in found]).plan(job.order))

    def _lacks(self, job: Job, found: Found, branch: Branch) -> str:
        position = job.call.forward.position
        searches = self.searches if position.steps > FEW_STEPS else 1
        return found.lacks(position, job.density, branch.rows.stop - branch.rows.start, searches)

    def _search(self, job: Job, found: list[Found], lse: Tensor) -> None:
        """For all rows at once, kept for each branch alone."""
        call = job.call
        blocks = search(job, lse, by_head=self.heads == "by recall")
        for one, branch in zip(found, call.branches, strict=True):
            one.blocks = blocks.of(branch.rows, call.q.shape[2])
            one.density, one.last = job.density, call.forward.position.step
