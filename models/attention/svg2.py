"""Sparse VideoGen 2 (arXiv 2505.18875): blocks are clusters of queries and clusters of keys, found by k-means per head.

Tokens that attend alike lie together whatever their place, so a kept block holds little that is not needed. With the
pooled tail and routing by error it is SVG-EAR (arXiv 2603.08982). Differs from both: any batch, masks and all segments;
centroids belong to a prompt and end with the run; large key clusters are cut into blocks that are ranked by themselves.
"""
# B batch   N tokens   H heads   D head dim   G = B * H   C clusters   P pieces of key clusters   Q query blocks

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from ..forward import Branch
from .job import Job
from .kmeans import Clusters, Pieces, first_centroids, kmeans
from .own_blocks import between_others
from .registry import Method, method
from .select import keep_all
from .svg2_routing import Keys, Ranking, chunks, kept_by_tokens, rank

# auto: by error with a tail, by mass without. Mean relative error of the tiny model's calls at density 0.2: with a tail
# 0.026 by error and 0.046 by mass, without 0.168 and 0.158.
ROUTINGS = ("auto", "error", "mass")
LEAST = 0.1  # of the key tokens, whatever their mass; of the key clusters in the published scripts
# 9216 tokens of the tiny model: squared distances after 10 rounds are 0.8 % above those after 50, which they take; from
# the centroids of the step before, one round is within 0.1 % of two.
FIRST_ROUNDS, LATER_ROUNDS = 10, 1
# Slots, at most. The same tokens in 200 key clusters: 64 slots are half again as many as tokens, 32 slots a quarter.
QUERY_SLOTS, KEY_SLOTS = 64, 32
# Room in a list: share of the key pieces where mass decides, beyond which dense attention is faster; pieces on top of a
# share, so that few pieces may all be small ones.
MOST, SPARE = 0.6, 16


@dataclass
class Warm:
    """What the next call of one prompt starts from: centroids [G, C, D], and the sigma that they are from.

    In the precision of the queries: 13 MB a layer in bfloat16, with 40 heads and 1300 clusters in all.
    """

    queries: Tensor | None = None
    keys: Tensor | None = None
    sigma: float = math.inf


@dataclass(frozen=True)
class Found:
    """What the plans of one call share, whatever their density. Pieces hold token numbers of the call."""

    queries: Pieces
    keys: Pieces
    ranking: Ranking


@method("svg2")
@dataclass(frozen=True)
class SVG2(Method):
    """density: share of the pairs of video tokens, above 0, at most 1; 0: by top_p
    top_p: softmax mass that the kept key blocks of a query cluster hold, as their means see it
    routing: one of ROUTINGS
    query_clusters, key_clusters: of the video tokens, for each head; 0: by rule

    A stated density is met to half a key block, 16 tokens, by every query cluster.
    """

    density: float = 0.0
    top_p: float = 0.9
    routing: str = "auto"
    query_clusters: int = 0
    key_clusters: int = 0

    label: ClassVar[str] = "Sparse VideoGen 2"
    summary: ClassVar[str] = "groups queries and keys by likeness and keeps the groups that matter to each other"
    own_rule: ClassVar[str] = "top_p"
    remembers: ClassVar[bool] = True

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of the pairs of video tokens computed exactly. Lower is faster and further "
                           "from dense; 0.15 to 0.3 is typical, 1.0 is dense. 0: as many as top_p asks for."),
            io.Float.Input("top_p", default=0.9, min=0.05, max=1.0, step=0.01,
                           tooltip="Where density is 0: share of a query's attention that the kept keys should hold. "
                           "Higher keeps more; 0.9 as published. A tenth of the keys is kept in any case."),
            io.Combo.Input("routing", options=list(ROUTINGS), default=ROUTINGS[0], optional=True,
                           tooltip="What makes keys worth keeping. error: that their mean would stand in for them "
                           "badly; mass: attention, as first published; auto: error with a tail, mass without."),
            io.Int.Input("query_clusters", default=0, min=0, max=4096, optional=True, advanced=True,
                         tooltip="Groups of queries per head. More are finer and slower; 100 to 400 are published. 0: "
                         "one for every 256 tokens, at most 400."),
            io.Int.Input("key_clusters", default=0, min=0, max=16384, optional=True, advanced=True,
                         tooltip="Groups of keys per head. More are finer and slower; 500 to 1000 are published. 0: "
                         "one for every 75 tokens, at most 1000."),
        ]  # fmt: skip

    def plan(self, job: Job) -> BlockPlan:
        if (self.top_p if job.density is None else job.density) >= 1:
            return keep_all(job.order)
        by_error = bool(job.tail) if self.routing == "auto" else self.routing == "error"
        name = self, by_error, job.density is None
        if name not in job.memo:
            job.memo[name] = self._find(job, by_error)
        found: Found = job.memo[name]
        return _plan(job.call, found, *self._counts(job, found))

    def clusters_of(self, tokens: int) -> tuple[int, int]:
        """Numbers of query and key clusters for that many video tokens.

        The rule gives the published 300 and 1000 for 81 frames of Wan at 720p, and more for their size to short clips.
        """
        queries = self.query_clusters or min(400, max(tokens // 256, min(50, tokens // 8)))
        keys = self.key_clusters or min(1000, max(tokens // 75, min(200, tokens // 4)))
        return min(max(queries, 1), tokens), min(max(keys, 1), tokens)

    def _counts(self, job: Job, found: Found) -> tuple[Tensor, int]:
        """How many pieces each query cluster keeps, int64 [G, C], and the most that any may.

        The most is known without asking the device: twice as many as pieces of mean size would need. Lists of all
        pieces take 0.8 GB at 720p with 40 heads. A query cluster that wants more goes without its worst.
        """
        order, live = found.ranking.order, found.keys.live
        counts, pieces = found.ranking.counts, order.shape[2]
        if job.density is not None:
            counts, budget = torch.empty(order.shape[:2], dtype=torch.int64, device=order.device), job.density
            for part in chunks(len(order), 16 * order[0].numel()):
                counts[part] = kept_by_tokens(order[part].long(), live[part], budget * len(job.call.layout.video))
        most = min(pieces, math.ceil((2 * job.density if job.density else MOST) * pieces) + SPARE)
        if counts.device.type == "cpu":
            most = min(most, int(counts.max()))
        return counts.clamp(max=most), most

    def _find(self, job: Job, by_error: bool) -> Found:
        call, start = job.call, job.call.layout.video.start
        if self not in job.memo:  # once a call: centroids move on from call to call
            job.memo[self] = [self._clusters(call, branch) for branch in call.branches]
        queries, keys = (_joined(side, start) for side in zip(*job.memo[self], strict=True))
        means = torch.cat([one.centroids for one, _ in job.memo[self]])
        scale = call.q.shape[-1] ** -0.5 if call.scale is None else call.scale
        ranking = rank(
            means, Keys.of(call.k, call.v, keys, job.key_bias), scale, by_error=by_error,
            top_p=self.top_p if job.density is None else None, least=LEAST * len(call.layout.video),
        )  # fmt: skip
        return Found(queries, keys, ranking)

    def _clusters(self, call: AttentionCall, branch: Branch) -> tuple[Clusters, Clusters]:
        """Of the queries and of the keys of one prompt's video, from where its last call ended."""
        video, sigma = call.layout.video, call.forward.position.sigma
        warm = call.state(branch, Warm)
        if sigma > warm.sigma * (1 + 1e-4):  # a sampler that adds noise again: another picture
            warm.queries = warm.keys = None
        q, k = (x[branch.rows, video.start : video.stop] for x in (call.q, call.k))
        numbers = self.clusters_of(len(video))
        queries = _cluster(q, warm.queries, numbers[0], QUERY_SLOTS, call.layer)
        keys = _cluster(k, warm.keys, numbers[1], KEY_SLOTS, call.layer)
        warm.queries, warm.keys = (one.centroids.to(q.dtype) for one in (queries, keys))
        warm.sigma = sigma
        return queries, keys


def _cluster(x: Tensor, warm: Tensor | None, clusters: int, slots: int, seed: int) -> Clusters:
    size = min(slots, 1 << math.ceil(math.log2(x.shape[1] / clusters)))  # pieces that hold a mean cluster
    if warm is None:
        return kmeans(x, first_centroids(x, clusters, seed), FIRST_ROUNDS, size)
    return kmeans(x, warm.float(), LATER_ROUNDS, size)


def _joined(sides: tuple[Clusters, ...], start: int) -> Pieces:
    """The pieces of all prompts, in token numbers of the call."""
    parts = [one.pieces for one in sides]
    slots = torch.cat([part.slots for part in parts])
    slots = torch.where(slots < 0, slots, slots + start)
    return Pieces(slots, torch.cat([part.live for part in parts]), torch.cat([part.owner for part in parts]))


def _plan(call: AttentionCall, found: Found, counts: Tensor, most: int) -> BlockPlan:
    """counts: int64 [G, C], at most `most`"""
    q_slots, q_live, (first, last) = between_others(call, found.queries.slots, found.queries.live)
    k_slots, k_live, (k_first, k_last) = between_others(call, found.keys.slots, found.keys.live)
    owner, (heads, blocks), device = found.queries.owner, q_live.shape, q_live.device
    sinks = torch.cat([torch.arange(*run, device=device) for run in ((0, k_first), (k_last, k_live.shape[1]))])
    cols = torch.zeros(heads, blocks, len(sinks) + most, dtype=torch.int32, device=device)
    cols[:, first:last, : len(sinks)] = sinks
    lists = found.ranking.order.flatten(0, 1)[:, :most]
    rows = owner + found.ranking.order.shape[1] * torch.arange(heads, device=device)[:, None]
    for part in chunks(heads, 4 * owner.shape[1] * most):
        some = lists.index_select(0, rows[part].flatten()).view(-1, owner.shape[1], most)
        torch.add(some, k_first, out=cols[part, first:last, len(sinks) :])
    kept = torch.zeros(heads, blocks, dtype=torch.int32, device=device)
    kept[:, first:last] = (counts.gather(1, owner) + len(sinks)).masked_fill_(found.queries.live == 0, 0)
    full = tuple(run for run in ((0, first), (last, blocks)) if run[0] < run[1])
    return BlockPlan(q_slots, k_slots, q_live, k_live, cols, kept, full)
