"""Error target: the density of each layer and step follows from an audit, not from a setting.

An audit takes a few query blocks, computes their rows exactly and at several densities, and interpolates the density at
which the relative L2 error is the target. Sampling rows to judge a mask is Sparse VideoGen's idea (arXiv 2502.01776);
there it chooses between two masks, here it closes the loop on any method's budget.
"""
# B batch   N tokens   H heads   D head dim   S slots per block   n audited blocks   G = 1 or B * H

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.block_attend import block_attend
from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from .job import Job

if TYPE_CHECKING:
    from .sparse import SparseAttention

LEAST, MOST = 0.03, 0.98  # densities; below and above, forced blocks and rounding decide more than the density does
TRIED = 5  # densities in one audit, in equal ratios from the least to the cap
BLOCKS = 8  # audited query blocks of 64 rows: 1.6 % of the rows of a 480p clip
ROWS = 64 * BLOCKS  # smaller blocks: more of them
EVERY = 2  # steps between two audits of a layer


@dataclass
class Audited:
    """What the last audit of one layer found, for one branch."""

    step: int | None = None
    density: float = 1.0
    error: float = 0.0


@dataclass(frozen=True)
class ErrorTarget:
    """error: relative L2 of an attention call against dense, mean over heads    most: the density is never higher"""

    error: float = 0.1
    most: float = 0.6

    def density(self, call: AttentionCall, sparse: SparseAttention, memo: dict) -> float:
        """The density for this call, which must be of one branch. An audit reads its errors from the device.

        memo: what the method remembers of this call, so that five plans do not cost five searches
        """
        found = call.run.state((sparse, "audit"), call.branches[0].id, call.layer, call.layout.key,
                               call.forward.window, Audited)  # fmt: skip
        step = call.forward.position.step
        if found.step is None or not 0 <= step - found.step < EVERY:
            most = min(self.most, MOST)
            tried = [LEAST * (most / LEAST) ** (i / (TRIED - 1)) for i in range(TRIED)]
            errors = audit(sparse, call, tried, memo).tolist()
            found.density, found.error = interpolate(tried, errors, self.error)
            found.step = step
        call.note(error=found.error, **{"at the density cap": float(found.density == min(self.most, MOST))})
        call.detail("density", found.density)
        return found.density


def interpolate(densities: list[float], errors: list[float], target: float) -> tuple[float, float]:
    """The least density that meets the target, between two tried ones, and its error.

    Linear in log error over log odds of the density: error falls like a power of what is kept while that is little, and
    to nothing with the last of what is dropped. (Over log density it came out 1.4 times too large near 0.6.)

    densities: ascending, below 1. Where none meets the target it is the last one, where all do the first.
    """
    below = next((i for i, error in enumerate(errors) if error <= target), None)
    if below is None:
        return densities[-1], errors[-1]
    if below == 0:
        return densities[0], errors[0]
    (d0, d1), (e0, e1) = densities[below - 1 : below + 1], errors[below - 1 : below + 1]
    if e1 <= 0:
        return d1, e1
    part = (math.log(e0) - math.log(target)) / (math.log(e0) - math.log(e1))
    o0, o1 = (d / (1 - d) for d in (d0, d1))
    odds = o0 * (o1 / o0) ** part
    return odds / (1 + odds), target


def audit(sparse: SparseAttention, call: AttentionCall, densities: list[float], memo: dict) -> Tensor:
    """Mean relative L2 error over heads of some query blocks, at each density: fp32 [len(densities)]."""
    errors, slots = [], None
    for density in densities:
        job = sparse.job(call, density, memo)
        plan = sparse.method.plan(job)
        if plan.sees_everything:
            errors.append(torch.zeros((), device=call.q.device))
            continue
        if plan.q_slots is not slots:  # query blocks that do not depend on the density are computed exactly once
            slots, sample = plan.q_slots, Sample.of(plan, call)
            exact = sample.exact(job, plan)
        errors.append(sample.error(job, plan, exact))
    return torch.stack(errors)


@dataclass(frozen=True)
class Sample:
    """Some video query blocks of a plan, spread over the video; other ones at another step.

    blocks: int64 [n]    q: [B, n * S, H, D], rows of padding slots are junk    live: bool [B, n * S, H]
    """

    blocks: Tensor
    q: Tensor
    live: Tensor

    @classmethod
    def of(cls, plan: BlockPlan, call: AttentionCall) -> Sample:
        slots = plan.q_slots
        full = {block for span in plan.full for block in range(*span)}
        video = [block for block in range(slots.shape[1]) if block not in full]
        count = min(len(video), max(BLOCKS, ROWS // slots.shape[2]))
        shift = (call.forward.position.step * 0.382) % 1.0  # golden section: the blocks of later audits lie between
        picked = [video[int((i + shift) * len(video) / count)] for i in range(count)]
        blocks = torch.tensor(picked, device=slots.device)
        tokens = slots[:, blocks].flatten(1).long()  # G, n * S
        batch, _, heads, dim = call.q.shape
        tokens = tokens.expand(batch * heads, -1).view(batch, heads, -1).transpose(1, 2)  # B, n * S, H
        q = call.q.gather(1, tokens.clamp(min=0)[..., None].expand(-1, -1, -1, dim))
        return cls(blocks, q, tokens >= 0)

    def exact(self, job: Job, plan: BlockPlan) -> Tensor:
        """Dense attention of these rows: [B, n * S, H, D]."""
        return self._attend(job, self._part(plan, ((0, len(self.blocks)),)))

    def error(self, job: Job, plan: BlockPlan, exact: Tensor) -> Tensor:
        """||sparse - dense|| / ||dense|| of these rows, mean over heads: fp32 scalar."""
        got = self._attend(job, self._part(plan, ()))
        apart = (got.float() - exact.float()).masked_fill_(~self.live[..., None], 0)
        size = exact.float().masked_fill(~self.live[..., None], 0)
        apart, size = (x.square().sum((1, 3)) for x in (apart, size))  # B H
        return (apart / size.clamp(min=1e-20)).sqrt().mean()

    def _attend(self, job: Job, plan: BlockPlan) -> Tensor:
        call = job.call
        return block_attend(self.q, call.k, call.v, plan, scale=call.scale, key_bias=job.key_bias, tail=job.tail)

    def _part(self, plan: BlockPlan, full: tuple) -> BlockPlan:
        """The plan of these blocks alone, over the rows of `q`."""
        size = plan.q_slots.shape[2]
        places = torch.arange(len(self.blocks) * size, dtype=torch.int32, device=self.blocks.device)
        slots = plan.q_slots[:, self.blocks]
        slots = torch.where(slots < 0, slots, places.view(1, -1, size))
        counts = None if plan.counts is None else plan.counts[:, self.blocks]
        return replace(plan, q_slots=slots, q_live=plan.q_live[:, self.blocks], cols=plan.cols[:, self.blocks],
                       counts=counts, full=full)  # fmt: skip
