"""Block top-k: every query block keeps the key blocks that its mean query gives the most softmax mass per token.

Per token, because tokens are what a kept block costs: ranked by whole mass, large blocks would win over small ones.
Keys that are not video are kept by all, queries that are not video see all; both come on top of the density. A query
block's own block is the first of its budget. Where density x blocks is not whole, the last block goes to those query
blocks whose next best key block is best, so the density is the stated one for every head.
"""
# B batch   N tokens   H heads   D head dim   K blocks   V video blocks   C longest list   G heads of a chunk

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ...kernels.pool_blocks import pool_blocks
from .orders import BlockOrder

MAP_BYTES = 64 << 20  # of score maps at a time; 1260 blocks (Wan at 720p in 8 x 8 tiles) are 6.4 MB a head


def top_blocks(
    q: Tensor,
    k: Tensor,
    order: BlockOrder,
    density: float,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    map_bytes: int = MAP_BYTES,
) -> BlockPlan:
    """Plan with round(density x V x V) exact video-to-video blocks per head, one per query block at least.

    q, k: [B, N, H, D]
    density: share of the video-to-video blocks, above 0, at most 1
    key_bias: fp32 [B, N], as the attention gets it
    raises: ValueError when the density is out of range
    """
    if not 0 < density <= 1:
        raise ValueError(f"Block selection needs a density above 0 and at most 1, not {density}.")
    heads, (first, last), blocks = q.shape[0] * q.shape[2], order.video, order.slots.shape[1]
    video = last - first
    each, spare = divmod(max(video, round(density * video * video)), video)
    if each == video:
        return keep_all(order)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    query = pool_blocks(q, order.slots)[0].transpose(1, 2).flatten(0, 1)[:, first:last]
    key, log_mass = (x.transpose(1, 2).flatten(0, 1) for x in pool_blocks(k, order.slots, key_bias))
    log_weight = log_mass - order.live.log()  # of the mean token: 0 without a bias, -inf where the bias leaves nothing
    sinks = torch.cat([torch.arange(*run, device=q.device) for run in ((0, first), (last, blocks))])
    width = len(sinks) + each + bool(spare)
    cols = torch.zeros(heads, blocks, width, dtype=torch.int32, device=q.device)
    counts = torch.full((heads, blocks), width, dtype=torch.int32, device=q.device) if spare else None
    step = max(1, map_bytes // (8 * video * blocks))
    for start in range(0, heads, step):
        chunk = slice(start, start + step)
        logits = torch.baddbmm(log_weight[chunk, None], query[chunk], key[chunk].transpose(1, 2), alpha=scale)
        score = logits.softmax(-1)[..., first:last]
        score.diagonal(dim1=-2, dim2=-1).fill_(2)  # no share of mass is larger: the own block comes first
        kept, short = _best(score, each, spare)
        kept = (kept + first).masked_fill_(kept == video, blocks)
        cols[chunk, first:last] = torch.cat((sinks.expand(*kept.shape[:2], -1), kept), -1).sort(-1).values.int()
        if counts is not None:
            counts[chunk, first:last] -= short.int()
    return BlockPlan(order.slots, order.slots, order.live, order.live, cols, counts, order.other)


def keep_all(order: BlockOrder) -> BlockPlan:
    """The plan of dense attention."""
    blocks = order.slots.shape[1]
    cols = order.live.new_zeros(1, blocks, 0)
    return BlockPlan(order.slots, order.slots, order.live, order.live, cols, full=((0, blocks),))


def _best(score: Tensor, each: int, spare: int) -> tuple[Tensor, Tensor]:
    """The `each` best columns of every row, and one more in the `spare` rows where one more is worth most.

    score: fp32 [G, V, V]
    returns: columns int64 [G, V, each or each + 1], V in place of the one more where it is not granted; bool [G, V]:
        not granted
    """
    best = score.topk(each + bool(spare), dim=-1)
    short = torch.zeros(score.shape[:2], dtype=torch.bool, device=score.device)
    if spare:
        granted = best.values[..., -1].topk(spare, dim=-1).indices
        short = short.logical_not().scatter_(1, granted, False)
        best.indices[..., -1].masked_fill_(short, score.shape[-1])
    return best.indices, short
