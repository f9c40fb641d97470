"""Search in exact softmax mass: after a dense call, the blocks that it looked at most, frozen as bits for many calls.

The selection rule of AdaSpa (arXiv 2502.21079): as many key blocks for each query block of a head, more for heads that
lose much and fewer for heads that lose little. Its recall counts the mass of the keys that all rows keep, as its masks
do; lists are kept as one bit a pair, a fifth of 16-bit lists at density 0.2.
"""
# B batch   N tokens   H heads   K blocks   V video blocks   C longest list   G = B * H, g of a chunk

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.block_mass import block_mass
from ...kernels.block_plan import BlockPlan
from ...kernels.list_map import list_map
from .job import Job
from .orders import BlockOrder
from .select import MAP_BYTES, budget, keep_all

RECALL = 0.8  # of the mass; heads above it give some of their blocks away, as published


@dataclass(frozen=True)
class FrozenBlocks:
    """The video blocks that each video query block keeps, one bit a pair: 16 MB a layer for Wan 14B at 720p, B = 2.

    bits: uint8 [G, V, ceil(V / 8)]
    width: key blocks in the longest list
    """

    bits: Tensor
    width: int

    @classmethod
    def packed(cls, keep: Tensor, width: int) -> FrozenBlocks:
        """keep: bool [G, V, V]"""
        fill = -keep.shape[-1] % 8
        bits = torch.nn.functional.pad(keep, (0, fill)).byte().unflatten(-1, (-1, 8))
        return cls((bits << _places(keep.device)).sum(-1, dtype=torch.uint8), width)

    @classmethod
    def joined(cls, parts: Sequence[FrozenBlocks]) -> FrozenBlocks:
        """Of the branches of a call, in the order of their rows."""
        return cls(torch.cat([part.bits for part in parts]), max(part.width for part in parts))

    def of(self, rows: slice, heads: int) -> FrozenBlocks:
        """rows: of the batch"""
        return replace(self, bits=self.bits[rows.start * heads : rows.stop * heads])

    def keep(self, heads: slice) -> Tensor:
        """The map again: bool [g, V, V]."""
        bits = self.bits[heads, :, :, None] >> _places(self.bits.device) & 1
        return bits.flatten(2)[..., : self.bits.shape[1]].bool()

    def plan(self, order: BlockOrder, map_bytes: int = MAP_BYTES) -> BlockPlan:
        """The lists, with what is not video on top. Their length is known, so no device is waited for."""
        (first, last), blocks = order.video, order.slots.shape[1]
        total, width = len(self.bits), blocks - (last - first) + self.width
        cols = torch.zeros(total, blocks, width, dtype=torch.int32, device=self.bits.device)
        counts = torch.zeros(total, blocks, dtype=torch.int32, device=self.bits.device)
        step = max(1, map_bytes // (9 * blocks * blocks))  # sorting a map takes 9 bytes an entry
        for start in range(0, total, step):
            chunk = slice(start, start + step)
            kept = torch.nn.functional.pad(self.keep(chunk), (first, blocks - last), value=True)
            cols[chunk, first:last], counts[chunk, first:last] = list_map(kept, width)
        return BlockPlan(order.slots, order.slots, order.live, order.live, cols, counts, order.other)


@dataclass
class Followed:
    """State that follows one branch from step to step.

    seen: step of its last call
    """

    seen: int = -1

    def restarts(self, step: int) -> bool:
        """Note a call. True when steps are done again: sigma has risen, and what was found before is of no use.

        By the step, because within one some samplers look ahead to a lower sigma and come back.
        """
        again, self.seen = step < self.seen, step
        return again


def dense_with_lse(job: Job) -> tuple[Tensor, Tensor]:
    """Dense attention by the kernel, with what a search needs. It counts as a dense call in the report.

    returns: [B, N, H, D]; fp32 [B, N, H]
    """
    out, lse = job.run(keep_all(job.order), tail=None, return_lse=True)
    job.used = None
    return out, lse


def each_alone(job: Job, attend: Callable[[Job], Tensor]) -> Tensor:
    """A call whose branches are not at the same point, as when a prompt joins later: branch by branch."""
    alone = [replace(job, call=job.call.only(branch)) for branch in job.call.branches]
    out = torch.cat([attend(one) for one in alone])
    job.used = alone[0].used
    return out


def search(job: Job, lse: Tensor, *, by_head: bool = True, map_bytes: int = MAP_BYTES) -> FrozenBlocks:
    """The video blocks of most softmax mass, round(density x V x V) a head in the mean of each batch entry's heads.

    A query block's own block is the first of its list. Blocks that do not go round go to the query blocks that gain
    most. Costs the product of queries and keys, half of a dense call. By a quarter of the rows it found 51.7 % of the
    mass instead of 51.9 in tiles of 64, but in tiles of 4 that took 10 to 16 dB from a whole run of the tiny model.

    lse: fp32 [B, N, H] of a dense call on these keys, or of an earlier one
    by_head: let heads that keep more than RECALL of their mass give a half of their blocks to those that keep least
    """
    quota = Quota.of(job.density, job.order.video, by_head)
    ranked = _rank(job, lse, quota, map_bytes)
    counts = quota.counts(*ranked[1:])
    blocks, step = counts.shape[1], max(1, map_bytes // (9 * counts.shape[1] ** 2))
    parts = []
    for best, count in zip(ranked[0].split(step), counts.split(step), strict=True):
        ended = torch.arange(quota.width, device=best.device) >= count[..., None]
        keep = torch.zeros(len(best), blocks, blocks + 1, dtype=torch.bool, device=best.device)
        keep.scatter_(-1, best.long().masked_fill_(ended, blocks), True)
        parts.append(FrozenBlocks.packed(keep[..., :-1], quota.width))
    return FrozenBlocks.joined(parts)


@dataclass(frozen=True)
class Quota:
    """Key blocks of a whole head, over its V query blocks: few, usual, many. The mean of few and many is the usual."""

    video: int
    totals: tuple[int, int, int]

    @classmethod
    def of(cls, density: float, video: tuple[int, int], by_head: bool) -> Quota:
        """Few and many are a half and three halves of the usual. All alike where many would be more than there are.

        raises: ValueError when the density is out of range
        """
        blocks = video[1] - video[0]
        usual = budget(density, blocks)
        few = max(blocks, usual // 2)
        many = 2 * usual - few
        return cls(blocks, (few, usual, many) if by_head and many <= blocks * blocks else (usual,) * 3)

    @property
    def width(self) -> int:
        """Of the longest list."""
        return math.ceil(self.totals[2] / self.video)

    def counts(self, recall: Tensor, edge: Tensor) -> Tensor:
        """How many blocks each query block gets: int64 [G, V].

        recall: fp32 [B, H], share of the mass that a head keeps with the usual number
        edge: fp32 [G, V, 3], what the query block would gain by one more, for each of the three
        """
        heads = recall.shape[1]
        giving = (recall > RECALL).sum(-1, keepdim=True).clamp(max=heads // 2)
        place = recall.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        pick = (1 - (place < giving).long() + (place >= heads - giving).long()).view(-1, 1)  # G 1: which total
        total = torch.tensor(self.totals, device=edge.device)[pick]
        gain = edge.gather(-1, pick[:, None].expand(-1, self.video, 1))[..., 0]
        rank = gain.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return total // self.video + (rank < total % self.video)


def _rank(job: Job, lse: Tensor, quota: Quota, map_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Video key blocks by mass, int [G, V, C], with `recall` and `edge` of `Quota.counts`.

    Ranked by the mass of the whole block: blocks are what the kernel's time goes by. By mass per token, at the same
    number of blocks, 0.2 points of 58 % were lost and 1.6 % of the pairs were saved (tiles of 25 to 36 tokens, density
    0.2, 24 calls of the tiny model).
    """
    call, (first, last) = job.call, job.order.video
    (batch, _, heads, _), video, device = call.q.shape, quota.video, call.q.device
    best = torch.empty(batch, heads, video, quota.width, device=device,
                       dtype=torch.int16 if video < 1 << 15 else torch.int32)  # fmt: skip
    recall, edge = (torch.empty(batch, heads, *more, device=device) for more in ((), (video, 3)))
    step = max(1, map_bytes // (16 * job.order.slots.shape[1] * video))
    usual, places = quota.totals[1] // video, [min(n // video, quota.width - 1) for n in quota.totals]
    for b in range(batch):
        bias = None if job.key_bias is None else job.key_bias[b : b + 1]
        for start in range(0, heads, step):
            some = slice(start, start + step)
            q, k, its_lse = (x[b : b + 1, :, some] for x in (call.q, call.k, lse))
            mass = block_mass(q, k, its_lse, keep_all(job.order), scale=call.scale, key_bias=bias)
            whole, score = mass[:, first:last].sum(-1), mass[:, first:last, first:last]
            sinks, own = whole - score.sum(-1), score.diagonal(dim1=-2, dim2=-1).clone()
            score.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
            values, best[b, some] = score.topk(quota.width, dim=-1)
            values[..., 0] = own
            share = values / whole.clamp(min=1e-30)[..., None]  # of an old lse the mass of a row is not 1
            recall[b, some] = (sinks / whole.clamp(min=1e-30) + share[..., :usual].sum(-1)).mean(-1)
            edge[b, some] = share[..., places]
    return best.flatten(0, 1), recall, edge.flatten(0, 1)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
