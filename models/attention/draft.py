"""DraftAttention (arXiv 2505.14708): a draft of the attention map, from pooled queries and keys, chooses the blocks.

Differs from the paper and its code: the draft is kept in fp32, any resolution and length (their tables need rows in
eights and columns in sixteens), tiles of 8 x 8, the exact count where they keep all ties, and by default as many
blocks for each query block: their ranking over a whole head can leave a query block without any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...kernels.block_plan import BlockPlan
from .job import Job
from .registry import Method, method
from .select import top_blocks

RANKINGS = ("each query block", "whole head")


@method("draft")
@dataclass(frozen=True)
class Draft(Method):
    """density: share of the video-to-video blocks that is computed exactly, above 0, at most 1; 0: by preset
    ranking: one of RANKINGS
    """

    density: float = 0.0
    ranking: str = "each query block"

    label: ClassVar[str] = "DraftAttention"
    summary: ClassVar[str] = "keeps the blocks that score highest on pooled queries and keys"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly. Lower is faster and further from "
                           "dense; 0.2 to 0.3 suits 480p and 720p clips at 20 to 50 steps, 1.0 is dense. 0: the preset "
                           "of the model family."),
        ]  # fmt: skip

    def plan(self, job: Job) -> BlockPlan:
        call = job.call
        return top_blocks(call.q, call.k, job.order, job.density, scale=call.scale, key_bias=job.key_bias)
