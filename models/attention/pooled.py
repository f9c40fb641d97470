"""Every block as one query and one key per head: what pooled maps of attention are made of.

The logit of two means stands for the block's mean logit. Softmax mass follows the mean of exponentials, which is larger
where logits differ within the block: by half their variance to second order. DraftAttention2 (comfy-kitchen, pull
request 179) takes that variance from mean squares, dimension by dimension, and calls it the Jensen term.
"""
# B batch   N tokens   H heads   D head dim   K blocks   R V video blocks of queries, of keys
# G heads of a chunk

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.pool_blocks import pool_blocks, pool_squares
from .job import Job
from .orders import BlockOrder, QueryBlocks


@dataclass(frozen=True)
class BlockMeans:
    """What `pool_blocks` returned for all blocks of an order: a kernel that runs on it need not pool again.

    key: fp32 [B, K, H, D], with the key bias; log_mass: fp32 [B, K, H], log of the weight of each key block
    """

    key: Tensor
    log_mass: Tensor


@dataclass(frozen=True)
class Pooled:
    """query: fp32 [B * H, R, D], mean query of each video block
    key: fp32 [B * H, K, D], mean key of each block
    log_weight: fp32 [B * H, K], what the key bias adds to the mean token's logit: 0 without one, -inf if none is left
    scale: of the logits
    video: first, past the last video block
    squares: mean squares in the shapes of query and key, for the Jensen term; None: without it
    means: what key is a view of
    """

    query: Tensor
    key: Tensor
    log_weight: Tensor
    scale: float
    video: tuple[int, int]
    squares: tuple[Tensor, Tensor] | None = None
    means: BlockMeans | None = None

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        order: BlockOrder,
        *,
        scale: float | None = None,
        key_bias: Tensor | None = None,
        jensen: bool = False,
        queries: QueryBlocks | None = None,
    ) -> Pooled:
        """q, k: [B, N, H, D]; key_bias: fp32 [B, N], as the attention gets it; queries: blocks of their own"""
        asking = queries.order if queries else order
        video = slice(*asking.video)
        pool = pool_squares if jensen else pool_blocks
        query, _, *query_square = pool(q, asking.slots)
        key, log_mass, *key_square = pool(k, order.slots, key_bias)
        means = BlockMeans(key, log_mass)
        squares = (_by_head(query_square[0])[:, video], _by_head(key_square[0])) if jensen else None
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        log_weight = _by_head(log_mass) - order.live.log()
        return cls(_by_head(query)[:, video], _by_head(key), log_weight, scale, order.video, squares, means)

    def logits(self, chunk: slice) -> Tensor:
        """The log of the mean exponential logit of block pairs, of some heads: fp32 [G, R, K]."""
        query, key = self.query[chunk], self.key[chunk].transpose(1, 2)
        logits = torch.baddbmm(self.log_weight[chunk, None], query, key, alpha=self.scale)
        if self.squares:
            query_square, key_square = (x[chunk] for x in self.squares)
            variance = query_square @ key_square.transpose(1, 2)
            variance.baddbmm_(query.square(), key.square(), alpha=-1).clamp_(min=0)  # rounding can take it below
            logits.add_(variance, alpha=self.scale**2 / 2)
        return logits

    def mass(self, chunk: slice) -> Tensor:
        """Share of the softmax that a token of each video block gets from the mean query: fp32 [G, R, V]."""
        return self.logits(chunk).softmax(-1)[..., slice(*self.video)]


def pooled_of(job: Job, *, jensen: bool = False, queries: QueryBlocks | None = None) -> Pooled:
    """Of the job's call; pooled once, however many plans are made for the call."""
    if "pooled" not in job.memo:
        call = job.call
        job.memo["pooled"] = Pooled.of(
            call.q, call.k, job.order, scale=call.scale, key_bias=job.key_bias, jensen=jensen, queries=queries
        )
    return job.memo["pooled"]


def _by_head(x: Tensor) -> Tensor:
    """[B, K, H, ...] -> [B * H, K, ...], a view of what `pool_blocks` returns"""
    return x.transpose(1, 2).flatten(0, 1)
