"""Every block as one query and one key per head: what pooled maps of attention are made of.

The logit of two means stands for the block's mean logit. Softmax mass follows the mean of exponentials, which is larger
where logits differ within the block: by half their variance to second order. DraftAttention2 (comfy-kitchen, pull
request 179) takes that variance from mean squares, dimension by dimension, and calls it the Jensen term.
"""
# B batch   N tokens   H heads   D head dim   K blocks   V video blocks   G heads of a chunk

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.pool_blocks import pool_blocks
from .job import Job
from .orders import BlockOrder

SQUARE_BYTES = 64 << 20  # of squared queries or keys at a time; a head of Wan at 720p takes 39 MB


@dataclass(frozen=True)
class Pooled:
    """query: fp32 [B * H, V, D], mean query of each video block
    key: fp32 [B * H, K, D], mean key of each block
    log_weight: fp32 [B * H, K], what the key bias adds to the mean token's logit: 0 without one, -inf if none is left
    scale: of the logits
    video: first, past the last video block
    squares: mean squares in the shapes of query and key, for the Jensen term; None: without it
    """

    query: Tensor
    key: Tensor
    log_weight: Tensor
    scale: float
    video: tuple[int, int]
    squares: tuple[Tensor, Tensor] | None = None

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
    ) -> Pooled:
        """q, k: [B, N, H, D]; key_bias: fp32 [B, N], as the attention gets it"""
        video = slice(*order.video)
        query = _by_head(pool_blocks(q, order.slots)[0])[:, video]
        key, log_mass = (_by_head(x) for x in pool_blocks(k, order.slots, key_bias))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        squares = (_mean_squares(q, order)[:, video], _mean_squares(k, order, key_bias)) if jensen else None
        return cls(query, key, log_mass - order.live.log(), scale, order.video, squares)

    def logits(self, chunk: slice) -> Tensor:
        """The log of the mean exponential logit of block pairs, of some heads: fp32 [G, V, K]."""
        query, key = self.query[chunk], self.key[chunk].transpose(1, 2)
        logits = torch.baddbmm(self.log_weight[chunk, None], query, key, alpha=self.scale)
        if self.squares:
            query_square, key_square = (x[chunk] for x in self.squares)
            variance = query_square @ key_square.transpose(1, 2)
            variance.baddbmm_(query.square(), key.square(), alpha=-1).clamp_(min=0)  # rounding can take it below
            logits.add_(variance, alpha=self.scale**2 / 2)
        return logits

    def mass(self, chunk: slice) -> Tensor:
        """Share of the softmax that a token of each video block gets from the mean query: fp32 [G, V, V]."""
        return self.logits(chunk).softmax(-1)[..., slice(*self.video)]


def pooled_of(job: Job, *, jensen: bool = False) -> Pooled:
    """Of the job's call; pooled once, however many plans are made for the call."""
    if "pooled" not in job.memo:
        call = job.call
        job.memo["pooled"] = Pooled.of(
            call.q, call.k, job.order, scale=call.scale, key_bias=job.key_bias, jensen=jensen
        )
    return job.memo["pooled"]


def _by_head(x: Tensor) -> Tensor:
    """[B, K, H, ...] -> [B * H, K, ...]"""
    return x.transpose(1, 2).flatten(0, 1)


def _mean_squares(x: Tensor, order: BlockOrder, key_bias: Tensor | None = None) -> Tensor:
    """Mean squares of each block, fp32 [B * H, K, D]. x: [B, N, H, D]"""
    step = max(1, SQUARE_BYTES // (4 * x[:, :, 0].numel()))
    pieces = (x[:, :, start : start + step].float().square() for start in range(0, x.shape[2], step))
    return _by_head(torch.cat([pool_blocks(piece, order.slots, key_bias)[0] for piece in pieces], 2))
