"""A plan from maps of kept blocks, for methods whose query blocks do not all keep the same number.

Keys that are not video are kept by all, queries that are not video see all, and every query block keeps its own block,
so no map can leave a row without a key.
"""
# H heads of a chunk   K blocks   V video blocks

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ...kernels.list_map import list_map
from .orders import BlockOrder, QueryBlocks

MAP_BYTES = 64 << 20  # of maps at a time; sorting one takes 9 bytes an entry


def mapped_plan(
    order: BlockOrder,
    heads: int,
    keep_of: Callable[[slice], Tensor],
    *,
    queries: QueryBlocks | None = None,
    map_bytes: int = MAP_BYTES,
) -> BlockPlan:
    """Lists of as many entries as the longest needs on the CPU; elsewhere of K, because asking waits for the device.

    order: shared by all heads
    heads: B * H, or 1 for a map that serves all
    keep_of: heads -> bool [H, R, V]; asked for some heads at a time
    queries: blocks of queries that are not those of the keys; `keep_of` then answers for their own blocks too
    """
    asking = queries.order if queries else order
    (first, last), blocks, rows = order.video, order.slots.shape[1], asking.slots.shape[1]
    device, step = order.slots.device, max(1, map_bytes // (9 * rows * blocks))
    cols = torch.zeros(heads, rows, blocks, dtype=torch.int32, device=device)
    counts = torch.zeros(heads, rows, dtype=torch.int32, device=device)
    own = None if queries else torch.eye(last - first, dtype=torch.bool, device=device)
    into = slice(*asking.video)
    for start in range(0, heads, step):
        chunk = slice(start, min(start + step, heads))
        kept = keep_of(chunk)
        keep = torch.ones(*kept.shape[:2], blocks, dtype=torch.bool, device=device)
        keep[..., first:last] = kept if queries else kept | own
        cols[chunk, into], counts[chunk, into] = list_map(keep)
    if device.type == "cpu":
        cols = cols[..., : int(counts.max())]
    return BlockPlan(asking.slots, order.slots, asking.live, order.live, cols, counts, asking.other)
