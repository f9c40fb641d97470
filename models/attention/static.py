"""A plan from one map that serves all heads: for masks that do not look at queries and keys."""
# K blocks   V video blocks

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from torch import Tensor

from ...kernels.block_plan import BlockPlan
from .mapped import mapped_plan
from .orders import BlockOrder
from .select import keep_all

RUN = 8  # query blocks in a row that see everything and leave the lists: kernels start anew for each run


def static_plan(order: BlockOrder, keep: Tensor) -> BlockPlan:
    """Lists no longer than the longest; runs of query blocks that keep everything become full ones.

    Reads the length of every list from the device, so keep the plan for the run.

    keep: bool [V, V]
    """
    plan, (first, last), blocks = mapped_plan(order, 1, lambda heads: keep[None]), order.video, order.slots.shape[1]
    counts = plan.counts[0].tolist()
    whole = [not first <= i < last or count == blocks for i, count in enumerate(counts)]
    if all(whole):
        return keep_all(order)
    full, at = [], 0
    for everything, run in groupby(whole):
        start, at = at, at + len(list(run))
        if everything and (at - start >= RUN or not first <= start < last or at > last):
            full.append((start, at))
    listed = set(range(blocks)).difference(*(range(*run) for run in full))
    return replace(plan, cols=plan.cols[..., : max(counts[i] for i in listed)].contiguous(), full=tuple(full))
