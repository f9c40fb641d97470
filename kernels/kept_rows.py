"""Query blocks against the blocks they keep, for `block_attend`: gathered keys in one softmax with the pooled tail.

With a tail the gathered keys lie slot first, [W, R, D]: kept slots and pooled keys then fill one contiguous piece of
the workspace each. Concatenating them copies everything once more: 55 ms where this takes 48 (bf16, 32k tokens, D 128,
density 0.2, 32 query blocks, one core). On the CPU `ordered_rows.py` is faster, but for bfloat16 with AMX.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block   C kept blocks
# R rows: (head, query block) pairs   T pooled tail keys: K or 0   W = C * S + T keys in sight of a row

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .attend_call import AttendCall
from .block_plan import BlockPlan
from .dense_rows import attention_mask
from .head_rows import HeadRows, head_rows
from .pool_blocks import pool_blocks

Sources = list[tuple[Tensor | None, Tensor]]  # table [rows, D] (None: zeros) and row numbers [R, n], in slot order


@dataclass(frozen=True)
class PooledTail:
    """One key and value per block, for the rows that do not keep the block."""

    key: HeadRows  # K tokens, q's dtype
    value: HeadRows  # K tokens, q's dtype, rows numbered as those of `key`
    log_mass: Tensor  # [B * H, K]
    query: HeadRows | None  # fp32, Q tokens; given when the rows of a query block share their logits
    scale: float

    @classmethod
    def of(cls, call: AttendCall) -> PooledTail:
        q, plan = call.q, call.plan
        key, log_mass = call.key_means or pool_blocks(call.k, plan.k_slots, call.key_bias)
        value, _ = pool_blocks(call.v, plan.k_slots, call.key_bias)
        key, value = head_rows(key.to(q.dtype)), head_rows(value.to(q.dtype))
        query = head_rows(pool_blocks(q, plan.q_slots)[0]) if call.tail == "block" else None
        return cls(key, value, log_mass.transpose(1, 2).flatten(0, 1), query, call.scale)

    def sources(
        self, heads: Tensor, blocks: Tensor, hidden: Tensor, piece_bytes: int
    ) -> tuple[tuple[Tensor | None, Tensor], tuple[Tensor, Tensor], Tensor]:
        """Keys, values and bias (fp32 [R, K]) of some rows' tails. Logits that rows share are all bias, on zero keys.

        hidden: int64 [R, C], the blocks that are kept instead; K where a list has ended
        """
        keys = self.log_mass.shape[1]
        ids = self.key.ids(torch.arange(keys, device=heads.device).expand(len(heads), -1), heads)
        bias = torch.cat((self.log_mass[heads], self.log_mass.new_zeros(len(heads), 1)), 1)
        bias = bias.scatter_(1, hidden, -torch.inf)[:, :keys]
        if self.query is None:
            return (self.key.table, ids), (self.value.table, ids), bias
        dim = self.key.table.shape[1]
        step = max(1, piece_bytes // (keys * dim * 8))
        for start in range(0, len(heads), step):
            piece = slice(start, start + step)
            key = self.key.table.index_select(0, ids[piece].flatten()).view(-1, keys, dim).float()
            query = self.query.take(blocks[piece, None], heads[piece])
            bias[piece] += self.scale * torch.bmm(key, query.transpose(1, 2))[..., 0]
        return (None, ids), (self.value.table, ids), bias


@dataclass(frozen=True)
class KeptRows:
    """Query blocks against the blocks they keep: index tables for a batch of rows, keys for a piece of it at a time."""

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
        size, dim, item = self.plan.q_slots.shape[2], self.q.table.shape[1], self.q.table.element_size()
        pooled = self.plan.k_slots.shape[1] if self.tail else 0
        for heads, blocks, count in self._groups():
            width = count * self.plan.k_slots.shape[2] + pooled
            # per key: row numbers of keys and values, 16, and what leads to them, 16; bias and mask with a copy, 16
            step = max(1, self.max_bytes // 2 // (48 * width + 4 * size * dim * item))
            for batch in zip(heads.split(step), blocks.split(step), strict=True):
                yield self._batch(*batch, count)

    def _groups(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Rows that share the length of their lists, as heads, query blocks and that length."""
        heads, blocks = self._rows()
        if self.plan.counts is None or heads.device.type != "cpu":  # elsewhere reading the counts waits for the device
            yield heads, blocks, self.plan.cols.shape[2]
            return
        counts, order = self.plan.counts[self._share(self.plan.counts, heads), blocks].sort(stable=True)
        lengths, rows = counts.unique_consecutive(return_counts=True)
        for count, group in zip(lengths.tolist(), order.split(rows.tolist()), strict=True):
            yield heads[group], blocks[group], count

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Head and query block of every row that is not full."""
        edges = [0, *(edge for span in self.plan.full for edge in span), self.plan.q_slots.shape[1]]
        device, total = self.plan.cols.device, len(self.q.first)
        blocks = torch.cat([torch.arange(*span, device=device) for span in zip(edges[::2], edges[1::2], strict=True)])
        return torch.arange(total, device=device).repeat_interleave(len(blocks)), blocks.repeat(total)

    def _share(self, table: Tensor, heads: Tensor) -> Tensor:
        """Which entry of a table, made for all heads, one batch entry or one head each, belongs to each head."""
        return heads * len(table) // len(self.q.first)

    def _batch(self, heads: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Some rows whose lists are no longer than `count`."""
        q_tokens = self.plan.q_slots[self._share(self.plan.q_slots, heads), blocks]
        q = self.q.take(q_tokens, heads)
        out, lse = torch.empty_like(q), torch.empty(q_tokens.shape, device=q.device) if self.return_lse else None
        piece_bytes = self.max_bytes // 2
        keys, values, bias = self._sources(heads, blocks, count, piece_bytes)
        (size, dim), width = q.shape[1:], bias.shape[1]
        if not width:
            return heads, q_tokens, out.zero_(), None if lse is None else lse.fill_(-torch.inf)
        mask, dead = attention_mask(bias, q.dtype)
        per_key = 2 * dim * q.element_size() + self.return_lse * 4 * (dim + size)
        step = max(1, piece_bytes // (width * per_key))
        space = q.new_empty(2, min(step, len(heads)) * width * dim)
        for start in range(0, len(heads), step):
            piece = slice(start, start + step)
            k, v = _fill(space[0], keys, piece), _fill(space[1], values, piece)
            seen = mask[None, piece, None].expand(-1, -1, size, -1)
            # rows as heads: from four heads on, torch packs bfloat16 for AMX
            out[piece] = scaled_dot_product_attention(
                q[None, piece], k[None], v[None], attn_mask=seen, scale=self.scale
            )[0]
            if lse is not None:
                score = torch.bmm(q[piece].float(), k.float().transpose(1, 2)).mul_(self.scale)
                lse[piece] = score.add_(bias[piece, None]).logsumexp(-1)
        return heads, q_tokens, out.masked_fill_(dead[..., None], 0), lse

    def _sources(self, heads: Tensor, blocks: Tensor, count: int, piece_bytes: int) -> tuple[Sources, Sources, Tensor]:
        """Where the keys and the values in sight of each row are, and their bias, fp32 [R, W]."""
        plan, keys = self.plan, self.plan.k_slots.shape[1]
        cols = plan.cols[self._share(plan.cols, heads), blocks, :count].long()
        if plan.counts is not None:
            counts = plan.counts[self._share(plan.counts, heads), blocks]
            cols = cols.masked_fill(torch.arange(count, device=cols.device) >= counts[:, None], keys)
        safe = cols.clamp(max=keys - 1)
        tokens = plan.k_slots[self._share(plan.k_slots, heads)[:, None], safe].flatten(1)
        bias = self.bias[self._share(self.bias, heads)[:, None], safe]
        if plan.counts is not None:
            bias = bias.masked_fill((cols == keys)[..., None], -torch.inf)
        kept = [(self.k.table, self.k.ids(tokens, heads))], [(self.v.table, self.v.ids(tokens, heads))]
        if self.tail is None:
            return *kept, bias.flatten(1)
        key, value, tail_bias = self.tail.sources(heads, blocks, cols, piece_bytes)
        return [*kept[0], key], [*kept[1], value], torch.cat((bias.flatten(1), tail_bias), 1)


def _fill(space: Tensor, sources: Sources, piece: slice) -> Tensor:
    """Gather what some rows see into the workspace, one source after the other: [R, W, D]."""
    dim, ids = sources[0][0].shape[1], [numbers[piece] for _, numbers in sources]
    rows, width = len(ids[0]), sum(numbers.shape[1] for numbers in ids)
    if len(sources) == 1:  # row first: a block's tokens are read in sequence
        filled = space[: rows * width * dim].view(-1, dim)
        return torch.index_select(sources[0][0], 0, ids[0].flatten(), out=filled).view(rows, width, dim)
    filled = space[: rows * width * dim].view(width, rows, dim)
    parts = filled.split([numbers.shape[1] for numbers in ids])
    for (table, _), numbers, part in zip(sources, ids, parts, strict=True):
        if table is None:
            part.zero_()
        else:
            torch.index_select(table, 0, numbers.t().flatten(), out=part.view(-1, dim))
    return filled.transpose(0, 1)
