"""DraftAttention (arXiv 2505.14708): a draft of the attention map, from pooled queries and keys, chooses the blocks.

Differs from the paper and its code: the draft is kept in fp32, any resolution and length (their tables need rows in
eights and columns in sixteens), tiles of 8 x 8, the exact count where they keep all ties, a query block's own block
always, and by default as many blocks for each query block: their ranking over a whole head can leave a query block
with its own alone. The Jensen term is of DraftAttention2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...kernels.block_plan import BlockPlan
from .extents import extents
from .job import Job
from .orders import QueryBlocks
from .pooled import pooled_of
from .registry import Method, method
from .select import top_of_heads, top_of_rows

RANKINGS = {"each query block": top_of_rows, "whole head": top_of_heads}
# PSNR to dense of the tiny text-to-video model (blocks of 4, 12 steps, 4 prompts, tail "each query"), at densities 0.5,
# 0.3 and 0.2: 40.0, 31.4, 28.1 dB; with "jensen" 41.0, 34.5, 30.2; with neighbours 39.4, 30.0, 27.5. "mean" is the
# default because that of real models has not been measured.
PROXIES = ("mean", "jensen")
# double: two blocks' worth of queries share a list, as in the published 8 x 16 tiles. Each block of keys is then read
# half as often, which the widest matrix units need to be kept busy. What it costs in quality: on data that is smooth as
# a video's (frames of 45 x 80 and 30 x 52 tokens, D 128, density 0.2, "strip" blocks of 64) errors fall from 0.048 to
# 0.041 and from 0.071 to 0.058; the tiny model, whose blocks are a sixteenth of a frame, falls from 31.4 dB to 25.0 at
# density 0.3. Which of both a big model is like has not been measured, so it is not the default.
QUERY_BLOCKS = (SINGLE := "single", DOUBLE := "double")


@method("draft")
@dataclass(frozen=True)
class Draft(Method):
    """density: share of the video-to-video blocks that is computed exactly, met to a block for every head; 0: by preset
    ranking: one of RANKINGS    proxy: one of PROXIES, see `pooled`    neighbours: touching blocks of a frame first
    query_blocks: one of QUERY_BLOCKS
    """

    density: float = 0.0
    ranking: str = "each query block"
    proxy: str = "mean"
    neighbours: bool = False
    query_blocks: str = SINGLE

    label: ClassVar[str] = "DraftAttention"
    summary: ClassVar[str] = "keeps the blocks that score highest on pooled queries and keys"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly. Lower is faster and further from "
                           "dense; 0.2 to 0.3 suits 480p and 720p clips at 20 to 50 steps, 1.0 is dense. 0: the preset "
                           "of the model family."),
            io.Combo.Input("ranking", options=list(RANKINGS), default="each query block",
                           tooltip="What competes for the budget. each query block: every one keeps as many; whole "
                           "head: all query blocks of a head together, as published, so that some keep next to none."),
            io.Combo.Input("proxy", options=list(PROXIES), default="mean",
                           tooltip="How a pair of blocks is scored. mean: by mean query and mean key, as published; "
                           "jensen: the spread within blocks counts too, which finds peaks that means hide and reads "
                           "queries and keys twice."),
            io.Boolean.Input("neighbours", default=False,
                             tooltip="Always keep the blocks that touch a query block within its frame, as part of the "
                             "budget: up to 9 with tiles. For densities that leave room for more."),
            io.Combo.Input("query_blocks", options=list(QUERY_BLOCKS), default=SINGLE,
                           tooltip="How many queries share a list of kept blocks. single: those of one block. double: "
                           "twice as many, so that a GPU reads each block half as often; for 480p and more, where two "
                           "blocks are a small part of a frame."),
        ]  # fmt: skip

    def plan(self, job: Job) -> BlockPlan:
        queries = job.blocks.doubled(job.call) if self.query_blocks == DOUBLE else None
        pooled = pooled_of(job, jensen=self.proxy == "jensen", queries=queries)
        forced = self._forced(job, queries)
        return RANKINGS[self.ranking](pooled, job.order, job.density, queries=queries, forced=forced)

    def _forced(self, job: Job, queries: QueryBlocks | None) -> Tensor | None:
        """bool [R, V]; what touches one of its own blocks touches a query block."""
        if not self.neighbours:
            return None
        call, order = job.call, job.order

        def touching() -> Tensor:
            near = extents(order, call.layout).neighbours()
            return (queries.own.float() @ near.float()) > 0 if queries else near

        name = (self, job.blocks, "neighbours")
        return call.run.state(name, str(order.slots.device), -1, call.layout.key, None, touching)
