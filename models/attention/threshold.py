"""Sol-Attn (arXiv 2607.24027): a query block keeps the key blocks that score tau standard deviations above its mean.

The spread of a query block's scores follows from the spread of the pooled keys, dimension by dimension, so a peaked
query block keeps few blocks and a flat one none but its own. The paper calls tau beta. Differs from the released
kernels: mean and spread are over video blocks alone, as nothing else is chosen from; a key bias lowers scores, and
blocks that it removes are left out; any block order; the tail is the node's (theirs is "each block", the paper's
"each query"). Where comfy_kitchen's kernel can take the call, it does all of this by its own rules: see `sol_attend`.
"""
# B batch   H heads   D head dim   K blocks   V video blocks   G heads of a chunk

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels import sol_attend
from ...kernels.block_plan import BlockPlan
from .job import Job
from .mapped import mapped_plan
from .pooled import Pooled, pooled_of
from .registry import Method, method
from .select import MAP_BYTES, best_pairs, budget, keep_all

FLOOR = 1e-6 * log(2) ** 2  # variance of logits below which spread is noise: 1e-6 in bits, as published
AHEAD = 1e4  # standard deviations that put a neighbour before all that is not forced


@method("threshold")
@dataclass(frozen=True)
class Threshold(Method):
    """density: share of the video-to-video blocks over each head, met to a block; query blocks differ. 0: by tau
    tau: standard deviations
    """

    density: float = 0.0
    tau: float = 1.3

    label: ClassVar[str] = "Sol-Attn"
    summary: ClassVar[str] = "keeps the blocks whose pooled score stands out of a query block's scores"
    own_rule: ClassVar[str] = "tau"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly, shared out among the query blocks of a "
                           "head by need. Lower is faster and further from dense; 0.2 is typical. 0: tau decides."),
            io.Float.Input("tau", default=1.3, min=-4.0, max=4.0, step=0.05,
                           tooltip="A block is kept if it scores so many standard deviations above the mean; counts at "
                           "density 0. Higher is faster and further from dense: 1.0 keeps about 16 %, 1.3 10 %, 1.5 "
                           "7 %, 2.0 2 %, and the neighbours. Above 1.5 small objects can dissolve."),
        ]  # fmt: skip

    def attend(self, job: Job) -> Tensor:
        """By the fused kernel of comfy_kitchen where tau decides and it can take the call; returns: [B, N, H, D]"""
        call, order = job.call, job.order
        asked = {"sinks": order.other, "tail": job.tail, "key_bias": job.key_bias}
        if job.density is not None or sol_attend.why_not(call.q, call.k, call.v, order.slots, **asked):
            return super().attend(job)
        job.used = lambda: self.plan(job)  # the kernel tells no one what it chose; planned if somebody asks
        return sol_attend.sol_attend(
            call.q, call.k, call.v, order.slots, order.live, tau=self.tau, scale=call.scale, **asked
        )

    def plan(self, job: Job) -> BlockPlan:
        pooled, video = pooled_of(job), job.order.video[1] - job.order.video[0]
        place = torch.arange(video, device=job.order.slots.device)
        near = (place[:, None] - place).abs() <= 1
        count = None if job.density is None else budget(job.density, video)
        if count == video * video:
            return keep_all(job.order)

        def keep_of(chunk: slice) -> Tensor:
            score = standard_scores(pooled, chunk)
            if count is None:
                return (score > self.tau) | near
            score += AHEAD * near
            score.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
            return best_pairs(score, count)

        return mapped_plan(job.order, len(pooled.query), keep_of, map_bytes=MAP_BYTES // 3)


def standard_scores(pooled: Pooled, chunk: slice) -> Tensor:
    """Logits of mean queries and keys, in standard deviations from the mean of each query block's: fp32 [G, V, V]."""
    first, last = pooled.video
    query, key = pooled.query[chunk], pooled.key[chunk, first:last]
    log_weight = pooled.log_weight[chunk, first:last]
    alive = (log_weight > -torch.inf)[..., None]
    number = alive.sum(1, keepdim=True).clamp(min=1)
    centred = (key - (key * alive).sum(1, keepdim=True) / number) * alive
    variance = centred.square().sum(1, keepdim=True) / number
    spread = (pooled.scale**2 * query.square() @ variance.transpose(1, 2) + FLOOR).sqrt()  # [G, V, 1]
    return torch.baddbmm(log_weight[:, None], query, centred.transpose(1, 2), alpha=pooled.scale) / spread
