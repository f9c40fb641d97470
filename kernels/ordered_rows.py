"""Query blocks against the blocks they keep, on the CPU: fp32 products over keys that are stored block by block.

The live keys and values of a head are copied into block order once; what a query block keeps is then a few long copies
into a workspace that stays in the cache. The softmax is explicit: on 64 query rows scaled_dot_product_attention works
in pieces of 32, at 0.7 of the rate that it has on many. bfloat16 and float16 are widened by the first copy.
"""
# H heads   D head dim   Q query blocks   K key blocks   S slots per block   C longest list   T pooled tail keys: K or 0
# R query blocks at a time   n keys that a row keeps   W = T + n keys in sight of it, the tail first

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .block_plan import BlockPlan
from .dense_rows import attention_mask
from .head_rows import HeadRows
from .kept_rows import PooledTail

PIECES = 16  # share their index work, which takes as long as a twentieth of a piece
COPIED = 2048  # tokens at a time on the way into block order
# Keys at a time in the workspace. With longer lists one query block at a time suits all threads: 32k tokens, density
# 0.25, one core: 4981 us a query block; 5536 with 4096 keys at a time, 6284 with all.
CHUNK = 2048


def suits_order(q: Tensor) -> bool:
    """Whether OrderedRows is the faster one: on the CPU, unless that multiplies bfloat16 by tiles (AMX)."""
    tiles = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)  # not in every torch
    return q.device.type == "cpu" and not (tiles and q.dtype == torch.bfloat16)


@dataclass(frozen=True)
class OrderedRows:
    """The arguments and results of KeptRows, for tensors on the CPU.

    Memory: max_bytes, or one head's keys and values in fp32 with what one query block needs, where that is more.
    """

    q: HeadRows
    k: HeadRows
    v: HeadRows
    plan: BlockPlan
    bias: Tensor  # [X, K, S] of `slot_bias`
    tail: PooledTail | None
    scale: float
    return_lse: bool
    max_bytes: int

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """heads [R], tokens [R, S], out [R, S, D], lse [R, S] or None."""
        lists = [self._by_width(head) for head in range(len(self.q.first))]
        space = _Space(self, max((widths[-1] for _, widths in lists if widths), default=0))
        for head, (blocks, widths) in enumerate(lists):
            space.load(head)
            step = PIECES * space.pieces
            for start in range(0, len(blocks), step):
                yield self._batch(space, head, blocks[start : start + step], widths[start : start + step])

    def of_head(self, table: Tensor, head: int) -> Tensor:
        """The entry of a table, made for all heads, one batch entry or one head each, that belongs to a head."""
        return table[head * len(table) // len(self.q.first)]

    def _by_width(self, head: int) -> tuple[Tensor, list[int]]:
        """The query blocks that are not full, by the number of keys that they keep, and that number."""
        blocks = torch.ones(self.plan.cols.shape[1], dtype=torch.bool)
        for start, stop in self.plan.full:
            blocks[start:stop] = False
        blocks = blocks.nonzero()[:, 0]
        live = pad(self.of_head(self.plan.k_live, head).long(), (0, 1))
        widths, order = live[self._lists(head, blocks)].sum(-1).sort(stable=True)
        return blocks[order], widths.tolist()

    def _lists(self, head: int, blocks: Tensor) -> Tensor:
        """Kept key blocks, int64 [R, C]; K where a list has ended."""
        cols = self.of_head(self.plan.cols, head)[blocks].long()
        if self.plan.counts is None:
            return cols
        counts = self.of_head(self.plan.counts, head)[blocks, None]
        return cols.masked_fill_(torch.arange(cols.shape[1]) >= counts, self.plan.k_slots.shape[1])

    def _batch(
        self, space: _Space, head: int, blocks: Tensor, widths: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Some query blocks of the loaded head."""
        heads, tokens = torch.full_like(blocks, head), self.of_head(self.plan.q_slots, head)[blocks]
        q = self.q.take(tokens, heads).float().mul_(self.scale)
        out, lse = torch.empty_like(q), torch.empty(tokens.shape) if self.return_lse else None
        cols = self._lists(head, blocks)
        lists = [row[:count] for row, count in zip(cols, (cols < space.keys).sum(-1).tolist(), strict=True)]
        live, tail = self.of_head(self.plan.q_live, head)[blocks].tolist(), space.tail_bias(blocks, cols)
        for start in range(0, len(blocks), space.pieces):
            piece = slice(start, start + space.pieces)
            rows = max(live[piece])
            sight = _Sight(space, lists[piece], widths[piece], tail[piece])
            if not sight.width:
                out[piece] = 0
                mass = -torch.inf
            else:
                score = sight.score(q[piece, :rows])
                mass = score.logsumexp(-1).add_(sight.shift) if self.return_lse else None
                out[piece, :rows] = sight.mean(torch.softmax(score, -1, out=score))
            if lse is not None:
                lse[piece, :rows] = mass
        return heads, tokens, out.to(self.q.table.dtype), lse


class _Space:
    """One head in block order, and room for what some of its query blocks see."""

    def __init__(self, rows: OrderedRows, longest: int) -> None:
        live, (self.keys, size) = rows.plan.k_live, rows.plan.k_slots.shape[1:]
        queries, dim = rows.plan.q_slots.shape[2], rows.q.table.shape[1]
        self.tail = self.keys if rows.tail else 0
        width, seen = self.tail + longest, self.tail + min(longest, max(CHUNK, size))
        # scores, which the log-sum-exp copies, with a bias and its copies; keys and values; of all pieces query, result
        # with a copy, bias of the tail with its copies
        each = width * (queries * (1 + rows.return_lse) + 4) + 2 * seen * dim
        each = 4 * (each + PIECES * (3 * queries * dim + 4 * self.tail))
        self.ordered = torch.empty(2, int(live.sum(-1).max()), dim)
        room = max(1, (rows.max_bytes - self.ordered.nbytes) // each)
        self.pieces = min(room, torch.get_num_threads()) if longest <= CHUNK else 1
        self.chunk = max(1, CHUNK // size)
        self.seen = torch.zeros(2, self.pieces, seen, dim)  # what padding reads must be finite
        self.scores = torch.empty(self.pieces * queries * width)
        self.uniform = bool((live == size).all())
        self.plain = not rows.bias.masked_fill(rows.plan.k_slots < 0, 0).any()
        self.rows = rows

    def load(self, head: int) -> None:
        """Take the keys, the values and the tail of a head."""
        rows, self.own = self.rows, torch.tensor([head])
        slots = rows.of_head(rows.plan.k_slots, head)
        tokens, live = slots[slots >= 0], rows.of_head(rows.plan.k_live, head).tolist()
        self.live = live
        for x, ordered in zip((rows.k, rows.v), self.ordered, strict=True):
            for ids, part in zip(x.ids(tokens[None], self.own)[0].split(COPIED), ordered.split(COPIED), strict=False):
                if x.table.dtype == part.dtype:
                    torch.index_select(x.table, 0, ids, out=part[: len(ids)])
                else:
                    part[: len(ids)] = x.table.index_select(0, ids)
        ordered = self.ordered[:, : len(tokens)]
        self.blocks = ordered.view(2, self.keys, -1) if self.uniform else [x.split(live) for x in ordered]
        self.bias = None if self.plain else rows.of_head(rows.bias, head)[slots >= 0].split(live)
        if rows.tail:
            every = torch.arange(self.keys)[None]
            self.tail_key, value = (x.take(every, self.own)[0].float() for x in (rows.tail.key, rows.tail.value))
            self.seen[0, :, : self.tail] = self.tail_key if rows.tail.query is None else 0
            self.seen[1, :, : self.tail] = value

    def tail_bias(self, blocks: Tensor, cols: Tensor) -> Tensor:
        """What to add to the scores of the tail: fp32 [R, T]. cols: [R, C]"""
        tail = self.rows.tail
        if tail is None:
            return torch.empty(len(blocks), 0)
        bias = tail.log_mass[self.own].expand(len(blocks), -1)
        if tail.query:
            mean = tail.query.take(blocks[None], self.own)[0]
            bias = torch.addmm(bias, mean, self.tail_key.t(), alpha=self.rows.scale)
        return pad(bias, (0, 1)).scatter_(1, cols, -torch.inf)[:, :-1]

    def count(self, blocks: Tensor) -> int:
        """Keys in some blocks."""
        return sum(self.live[j] for j in blocks.tolist())

    def take(self, which: int, blocks: Tensor, room: Tensor) -> None:
        """Copy the keys (0) or values (1) of some blocks. room: [n, D]"""
        if self.uniform:
            torch.index_select(self.blocks[which], 0, blocks, out=room.view(len(blocks), self.blocks.shape[2]))
        elif len(room):
            torch.cat([self.blocks[which][j] for j in blocks.tolist()], out=room)


class _Sight:
    """What a piece of query blocks sees. Rows that keep fewer keys than the last one are padded."""

    def __init__(self, space: _Space, lists: list[Tensor], widths: list[int], tail: Tensor) -> None:
        """lists: kept blocks of each row; widths: keys in them, ascending; tail: bias, [R, T]"""
        self.space, self.lists, self.stops = space, lists, [space.tail + width for width in widths]
        self.width = self.stops[-1]
        self.mask, self.dead, self.shift = tail, None, 0.0
        if not self.width or (space.plain and self.stops[0] == self.width):
            return
        bias = torch.full((len(lists), self.width), -torch.inf)
        bias[:, : space.tail] = tail
        for row, blocks, stop in zip(bias, lists, self.stops, strict=True):
            if space.plain:
                row[space.tail : stop] = 0
            elif stop > space.tail:
                torch.cat([space.bias[j] for j in blocks.tolist()], out=row[space.tail : stop])
        self.mask, self.dead = attention_mask(bias, torch.float32)
        self.shift = (bias.amax(-1) - self.mask.amax(-1))[:, None]

    def score(self, q: Tensor) -> Tensor:
        """q: [R, S, D]; returns: [R, S, W] in the workspace"""
        score = self.space.scores[: q.shape[:2].numel() * self.width].view(*q.shape[:2], self.width)
        for columns, keys in self._see(0):
            torch.bmm(q, keys.transpose(1, 2), out=score[..., columns])
        score[..., : self.mask.shape[1]].add_(self.mask[:, None])
        return score

    def mean(self, weight: Tensor) -> Tensor:
        """weight: [R, S, W]; returns: [R, S, D]"""
        out = None
        for columns, values in self._see(1):
            part = weight[..., columns]
            out = torch.bmm(part, values) if out is None else out.baddbmm_(part, values)
        return out if self.dead is None else out.masked_fill_(self.dead[..., None], 0)

    def _see(self, which: int) -> Iterator[tuple[slice, Tensor]]:
        """Keys (0) or values (1), a chunk at a time: columns of the scores, [R, n, D] in the workspace."""
        space, seen = self.space, self.space.seen[which, : len(self.lists)]
        if self.width <= seen.shape[1]:
            seen = seen[:, : self.width]
            for row, blocks, stop in zip(seen.unbind(), self.lists, self.stops, strict=True):
                space.take(which, blocks, row[space.tail : stop])
            yield slice(0, self.width), seen
            return
        start = 0
        for blocks in self.lists[0].split(space.chunk):
            low, high = space.tail if start else 0, space.tail + space.count(blocks)
            space.take(which, blocks, seen[0, space.tail : high])
            yield slice(start, start + high - low), seen[:, low:high]
            start += high - low
