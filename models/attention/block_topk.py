"""Block top-k on pooled scores: each query block keeps the key blocks that its mean query scores highest.

The common ground of the training-free methods (DraftAttention, arXiv 2505.14708, is this on 8x8 tiles). What differs
here: the budget is the stated share of exact blocks, and with a tail dropped blocks stay in the softmax as their means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from .method import bias_rows, method
from .orders import BlockOrder
from .select import top_blocks


@method("block_topk")
@dataclass(frozen=True)
class BlockTopK:
    """density: share of the video-to-video blocks that is computed exactly, above 0, at most 1"""

    density: float = 0.3

    label: ClassVar[str] = "Block Top-K"
    summary: ClassVar[str] = "keeps the blocks that score highest on pooled queries and keys"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.3, min=0.02, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly. Lower is faster and further from "
                           "dense; 0.2 to 0.3 suits 480p and 720p clips at 20 to 50 steps, 1.0 is dense."),
        ]  # fmt: skip

    def plan(self, call: AttentionCall, order: BlockOrder) -> BlockPlan:
        return top_blocks(call.q, call.k, order, self.density, scale=call.scale, key_bias=bias_rows(call))
