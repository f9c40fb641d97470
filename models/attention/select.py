"""Block top-k: every query block keeps the key blocks that its mean query gives the most softmax mass per token.

Per token, because tokens are what a kept block costs: ranked by whole mass, large blocks would win over small ones.
Keys that are not video are kept by all, queries that are not video see all; both come on top of the density. A query
block's own block is the first of its budget. Where density x blocks is not whole, the last block goes to those query
blocks whose next best key block is best, so the density is the stated one for every head.
"""
# B batch   N tokens   H heads   D head dim   K blocks   R V video blocks of queries, of keys
# C longest list   G heads of a chunk

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ...kernels.keep_top import keep_top
from .mapped import mapped_plan
from .orders import BlockOrder, QueryBlocks
from .pooled import Pooled

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
    return top_of_rows(Pooled.of(q, k, order, scale=scale, key_bias=key_bias), order, density, map_bytes=map_bytes)


def top_of_rows(
    pooled: Pooled,
    order: BlockOrder,
    density: float,
    *,
    queries: QueryBlocks | None = None,
    forced: Tensor | None = None,
    map_bytes: int = MAP_BYTES,
) -> BlockPlan:
    """`top_blocks` of what was pooled before.

    queries: blocks of queries that are not those of the keys, as `pooled` has them; all that they share is their own
    forced: bool [R, V], pairs that come first in a query block's budget, after its own blocks
    """
    asking = queries.order if queries else order
    heads, (first, last), blocks = len(pooled.query), order.video, order.slots.shape[1]
    rows, video = pooled.query.shape[1], last - first
    each, spare = divmod(budget(density, video, rows), rows)
    if each == video:
        return keep_all(order)
    if queries:
        forced = queries.own if forced is None else queries.own | forced
    device, width = order.slots.device, blocks - video + each + bool(spare)
    cols = torch.zeros(heads, asking.slots.shape[1], width, dtype=torch.int32, device=device)
    counts = torch.full(cols.shape[:2], width, dtype=torch.int32, device=device) if spare else None
    step = max(1, map_bytes // (8 * rows * blocks))  # scores, and a term of theirs or what ranks them
    into = slice(*asking.video)
    for start in range(0, heads, step):
        chunk = slice(start, start + step)
        kept, number = keep_top(pooled.logits(chunk), each, spare, first=first, last=last, forced=forced,
                                own=not queries)  # fmt: skip
        cols[chunk, into] = kept
        if counts is not None:
            counts[chunk, into] = number
    return BlockPlan(asking.slots, order.slots, asking.live, order.live, cols, counts, asking.other)


def top_of_heads(
    pooled: Pooled,
    order: BlockOrder,
    density: float,
    *,
    queries: QueryBlocks | None = None,
    forced: Tensor | None = None,
    map_bytes: int = MAP_BYTES,
) -> BlockPlan:
    """The same number of pairs per head, ranked over all query blocks of the head, so that these differ in number."""
    rows, video = pooled.query.shape[1], order.video[1] - order.video[0]
    count = budget(density, video, rows)
    if count == rows * video:
        return keep_all(order)

    def keep_of(chunk: slice) -> Tensor:
        return best_pairs(_ranked(pooled.mass(chunk), forced, queries), count)

    third = map_bytes // 3  # ranking takes twice as much again
    return mapped_plan(order, len(pooled.query), keep_of, queries=queries, map_bytes=third)


def budget(density: float, video: int, rows: int | None = None) -> int:
    """Pairs of blocks to keep of `rows` x `video`, one per row at least. rows: query blocks; None: as many as `video`

    raises: ValueError when the density is out of range
    """
    if not 0 < density <= 1:
        raise ValueError(f"Block selection needs a density above 0 and at most 1, not {density}.")
    rows = video if rows is None else rows
    return max(rows, round(density * rows * video))


def best_pairs(score: Tensor, count: int) -> Tensor:
    """The `count` best pairs of every head, no more and no less: of equal ones at the edge, the first by position.

    score: fp32 [G, R, V], without NaN
    returns: bool [G, R, V]
    """
    flat = score.flatten(1)
    edge = flat.kthvalue(flat.shape[1] - count + 1, dim=1, keepdim=True).values
    keep, level = flat > edge, flat == edge
    room = count - keep.sum(1, keepdim=True)
    keep |= level & (level.cumsum(1, dtype=torch.int32) <= room)
    return keep.view_as(score)


def keep_all(order: BlockOrder) -> BlockPlan:
    """The plan of dense attention."""
    blocks = order.slots.shape[1]
    cols = order.live.new_zeros(1, blocks, 0)
    return BlockPlan(order.slots, order.slots, order.live, order.live, cols, full=((0, blocks),))


def _ranked(mass: Tensor, forced: Tensor | None, queries: QueryBlocks | None) -> Tensor:
    """Shares of mass with what is forced before all others: no share is above 1, and own blocks come first.

    mass: fp32 [G, R, V], changed in place
    """
    if forced is not None:
        mass += forced
    if queries:
        return mass.masked_fill_(queries.own, 3)
    mass.diagonal(dim1=-2, dim2=-1).fill_(3)
    return mass
