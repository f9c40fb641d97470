"""Re-ttention (arXiv 2505.22918): every few steps a dense one measures what sparse attention misses; it is added back.

O = rho O_sparse + R, where rho is the share of softmax mass that the mask kept at the last dense step and R what the
dropped keys contributed there. On the same queries, keys and values that is dense attention.

Differs from the paper and its code: a mask of blocks, searched for at every dense step or, as theirs, a window, but one
in two dimensions that is never cut off at the border; rho comes from two log-sum-exps instead of score matrices and
stays at most 1; R lies before the output projection, and may be a mean over each block; text rows are exact.
"""
# B batch   N tokens   H heads   D head dim   K blocks   V video blocks   S slots per block

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.attend_call import Reshape
from ...kernels.block_plan import BlockPlan, block_of
from ...kernels.pool_blocks import pool_blocks
from ..call import AttentionCall
from ..layout import TokenLayout
from ..schedule import Position
from .job import Job
from .parked import CHUNK_BYTES, RAM, WHERE, Parked, parked_bytes, waiting_place
from .patterns import Pattern, blocks_kept, pattern_map, places_of
from .presets import FEW_STEPS
from .registry import Method, method
from .search import Followed, FrozenBlocks, dense_with_lse, each_alone, search
from .select import keep_all

# Published is the window. On the tiny model, 20 steps of which 5 are dense, at the cost of 3 dense calls in 5 steps:
# search 46.2 dB at density 0.3, window 43.8 at 0.4; with residuals per block 42.0 and 30.8.
MASKS = ("search", "window")
RESIDUALS = ("auto", "per token", "per block", "off")


@dataclass(frozen=True)
class Keeping:
    """How a run keeps its residuals: per token or as a mean over each block, and where."""

    per_token: bool
    place: torch.device


@dataclass
class Measured(Followed):
    """What the last refresh of one layer found, for one branch.

    step: of the refresh
    rho: fp16 [B, N, H]; the residual is that of the rounded value
    residual: [B, N, H, D] or, a mean over each block, [B, K, H, D]; nothing when it is off
    """

    step: int = -1
    density: float = 0.0
    rho: Tensor | None = None
    residual: Parked = field(default_factory=Parked)
    blocks: FrozenBlocks | None = None

    def serves(self, position: Position, clips: int, period: int) -> bool:
        """False before the first refresh and when one is due."""
        return self.rho is not None and len(self.rho) == clips and position.step - self.step < period

    def age(self, position: Position) -> int:
        """Sparse steps since the refresh, 0 in the first."""
        return max(0, position.step - self.step - 1)


@method("rettention")
@dataclass(frozen=True)
class Rettention(Method):
    """density: share of the video-to-video blocks that is computed exactly in the steps between, met but for rounding
        to whole blocks; 0: by preset. A ramp is followed at the refreshes, because rho and R belong to their mask
    mask: one of MASKS; "search" as in AdaSpa, as many blocks for every head
    period: steps from one refresh to the next
    growth: what rho grows by in each step between. 0, 0.02 and 0.04, the published: 41.5, 43.0 and 43.2 dB with a
        window, 46.0, 46.2 and 44.7 with a search, as measured for MASKS at density 0.3
    residual: one of RESIDUALS
    residual_device: one of parked.WHERE
    """

    density: float = 0.0
    mask: str = "search"
    period: int = 5
    growth: float = 0.02
    residual: str = "auto"
    residual_device: str = "auto"

    label: ClassVar[str] = "Re-ttention"
    summary: ClassVar[str] = "puts back what a dense step every few steps has shown to be missing"
    steerable: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly between the dense steps. Lower is "
                           "faster and further from dense. 0: the preset of the model family."),
            io.Combo.Input("mask", options=list(MASKS), default="search",
                           tooltip="What is kept between dense steps. search: what each dense step looked at most, for "
                           "half a dense step more. window: the nearest places of the frame, in all frames, as "
                           "published; further from dense."),
            io.Int.Input("period", default=5, min=2, max=20,
                         tooltip="Steps from one dense step to the next. Lower is closer to dense and slower: with 5 "
                         "every fifth step is dense."),
            io.Float.Input("growth", default=0.02, min=0.0, max=0.1, step=0.01,
                           tooltip="How much more of the softmax the kept keys are given in each step after a dense "
                           "one, while what is put back stays. Higher trusts an older residual less; 0 to 0.04."),
            io.Combo.Input("residual", options=list(RESIDUALS), default="auto",
                           tooltip="What is put back: per token is closest to dense and takes half the memory of the "
                           "keys of all layers and prompts; per block a 64th of that. auto: per token where it fits. "
                           "off only scales, so outputs shrink: for experiments."),
            io.Combo.Input("residual_device", options=list(WHERE), default="auto",
                           tooltip="Where that waits. auto: on the GPU if it takes a quarter of its free memory or "
                           "less, else in RAM, from where it is copied for every call."),
        ]  # fmt: skip

    def why_not(self, call: AttentionCall) -> str | None:
        if call.run.schedule.steps <= FEW_STEPS:
            return "too few steps: the residual of an earlier step is too old"
        return None

    def attend(self, job: Job) -> Tensor:
        call, position = job.call, job.call.forward.position
        if job.density == 1:
            return job.run(keep_all(job.order))
        found = [call.state(branch, Measured) for branch in call.branches]
        for one in found:
            if one.restarts(position.step):
                one.rho = None
        clips = [branch.rows.stop - branch.rows.start for branch in call.branches]
        serve = {
            one.density if one.serves(position, count, self.period) else None
            for one, count in zip(found, clips, strict=True)
        }
        if len(serve) > 1:
            return each_alone(job, self.attend)
        return self._refresh(job, found) if serve == {None} else self._put_back(job, found)

    def _refresh(self, job: Job, found: list[Measured]) -> Tensor:
        """Dense attention, and what the mask misses of it."""
        call, step = job.call, job.call.forward.position.step
        dense, lse = dense_with_lse(job)
        blocks = search(job, lse, by_head=False) if self.mask == "search" else None
        plan = self._window(job, job.density) if blocks is None else blocks.plan(job.order)
        sparse, kept = job.run(plan, tail=None, return_lse=True)
        job.used = None
        rho = (kept - lse).exp_().nan_to_num_(1).clamp_(max=1).half()  # a row that sees nothing has no rho
        for start, stop in not_video(call.layout):
            rho[:, start:stop] = 1
        for one, branch in zip(found, call.branches, strict=True):
            one.step, one.density, one.rho = step, job.density, rho[branch.rows]
            one.blocks = None if blocks is None else blocks.of(branch.rows, call.q.shape[2])
        if self.residual != "off":
            self._keep_missing(job, found, missing(dense, sparse, rho))
        return dense

    def _keep_missing(self, job: Job, found: list[Measured], residual: Tensor) -> None:
        """residual: [B, N, H, D]"""
        call, keeping = job.call, self._keeping(job)
        for start, stop in not_video(call.layout):
            residual[:, start:stop] = 0
        if not keeping.per_token:
            residual = pool_blocks(residual, job.order.slots)[0].to(residual.dtype)
        for one, branch in zip(found, call.branches, strict=True):
            one.residual.put(residual[branch.rows], keeping.place)

    def _put_back(self, job: Job, found: list[Measured]) -> Tensor:
        """Sparse attention and what the last refresh knows of the rest."""
        call, residual = job.call, None
        if self.mask == "search":
            plan = FrozenBlocks.joined([one.blocks for one in found]).plan(job.order)
        else:
            plan = self._window(job, found[0].density)
        rho = [one.rho.float() + self.growth * one.age(call.forward.position) for one in found]
        if self.residual != "off":
            residual = torch.cat([one.residual.get(call.q.device) for one in found])
            if not self._keeping(job).per_token:
                residual = residual.index_select(1, self._block_of(job))
        return job.run(plan, tail=None, reshape=Reshape(torch.cat(rho), residual))

    def _keeping(self, job: Job) -> Keeping:
        """Decided for all layers at the first."""
        call = job.call

        def decide() -> Keeping:
            batch, tokens, heads, dim = call.q.shape
            batch *= max(2, len(call.branches)) / len(call.branches)  # a second prompt may come in calls of its own
            forms = {"auto": (True, False), "per token": (True,), "per block": (False,)}[self.residual]
            for per_token in forms:
                rows = tokens if per_token else job.order.slots.shape[1]
                total = parked_bytes((int(batch), rows, heads, dim), call.q.dtype) * call.forward.layers
                if place := waiting_place(self.residual_device, total, call.q.device):
                    break
            place = place or (call.q.device if self.residual_device == "gpu" else RAM)
            form = "per token" if per_token else "per block"
            call.say("residual", f"{form}, {total / 1e9:.2f} GB on {place}")
            return Keeping(per_token, place)

        return call.run.state((self, "keeping"), str(call.q.device), -1, call.layout.key, None, decide)

    def _window(self, job: Job, density: float) -> BlockPlan:
        """The nearest places of the frame, in all frames."""
        call, order = job.call, job.order

        def build() -> BlockPlan:
            pattern, places = Pattern("places", density), places_of(order, call.layout)
            keep = pattern_map(pattern, places)[None]
            return FrozenBlocks.packed(keep, blocks_kept(pattern, len(places))).plan(order)

        return call.run.state((self, "window", density), str(call.q.device), -1, call.layout.key, None, build)

    def _block_of(self, job: Job) -> Tensor:
        """Block of each token: int64 [N]."""
        call, slots = job.call, job.order.slots

        def build() -> Tensor:
            return block_of(slots, torch.arange(call.layout.tokens, device=slots.device))[0]

        return call.run.state((self, "block of"), str(call.q.device), -1, call.layout.key, None, build)


def missing(dense: Tensor, sparse: Tensor, rho: Tensor) -> Tensor:
    """What the dropped keys contributed, dense - rho sparse, in the memory of `sparse`.

    dense, sparse: [B, N, H, D]
    rho: [B, N, H]
    """
    step = max(1, CHUNK_BYTES // (4 * dense[:, 0].numel()))
    for start in range(0, dense.shape[1], step):
        some = slice(start, start + step)
        sparse[:, some] = dense[:, some].float() - rho[:, some, :, None].float() * sparse[:, some].float()
    return sparse


def not_video(layout: TokenLayout) -> list[tuple[int, int]]:
    """The runs of tokens whose rows see everything, so that nothing is missing from them."""
    return [(segment.start, segment.stop) for segment in layout.segments if segment.kind != "video"]
