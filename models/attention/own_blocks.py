"""Blocks for methods that cut the video their own way, head by head: theirs between those of the other segments."""
# V video blocks   S slots per block   G = 1 or B * H

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..call import AttentionCall
from .orders import BlockOrder, raster


def between_others(call: AttentionCall, slots: Tensor, live: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Slots and live counts of all blocks, as a BlockPlan takes them, and the run of video blocks.

    slots: int32 [G, V, S], token numbers of the call, -1 is padding
    live: int32 [G, V]
    """
    size, device = slots.shape[2], str(slots.device)

    def build() -> BlockOrder:
        return raster(call.layout, size).to(device)

    order = call.run.state(("other segments", size), device, -1, call.layout.key, None, build)
    (first, last), heads = order.video, len(slots)
    others = pad(order.slots, (0, size - order.slots.shape[2]), value=-1).expand(heads, -1, -1)
    counts = order.live.expand(heads, -1)
    slots = torch.cat((others[:, :first], slots, others[:, last:]), 1)
    live = torch.cat((counts[:, :first], live, counts[:, last:]), 1)
    return slots, live, (first, first + slots.shape[1] - others.shape[1] + last - first)
