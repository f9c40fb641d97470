"""Fixed patterns as kernel lists on one layout, made once a run, and put together for the heads of a call."""
# B batch   H heads   K blocks   V video blocks   C longest list   L calibrated layers   P patterns   X some heads

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan, kept_lists
from ..layout import TokenLayout
from .orders import BlockOrder
from .pattern_table import PatternTable
from .patterns import Pattern, pattern_map, places_of, price, stripe_columns, stripes_taken
from .select import keep_all

Groups = list[tuple[int, Tensor]]  # number of a pattern, heads that run it, int64 on the device


@dataclass(frozen=True)
class PatternLists:
    """Keys that are not video are in all lists.

    fixed: lists of the patterns that are the same for all heads: cols int32 [V, C], counts int32 [V]
    columns: int32 [L, H, C], blocks of the greatest mass first, as many as the widest stripes take
    sinks: int32, the blocks that are not video
    prices: fp32 [P] on the CPU, share of the pairs of video blocks that each pattern computes
    """

    patterns: tuple[Pattern, ...]
    order: BlockOrder
    fixed: dict[int, tuple[Tensor, Tensor]]
    columns: Tensor
    sinks: Tensor
    prices: Tensor

    @classmethod
    def of(cls, table: PatternTable, order: BlockOrder, layout: TokenLayout) -> PatternLists:
        """Reads a few numbers from the device."""
        places, (first, last) = places_of(order, layout), order.video
        device = order.slots.device
        sinks = torch.cat([torch.arange(*run, device=device) for run in ((0, first), (last, order.slots.shape[1]))])
        fixed, prices = {}, []
        for number, pattern in enumerate(table.patterns):
            keep = None if pattern.kind in ("full", "stripes") else pattern_map(pattern, places)
            prices.append(price(pattern, len(places), keep))
            if keep is not None:
                cols, counts = kept_lists(keep[None], int(keep.sum(-1).max()))
                cols = torch.cat((sinks.int().expand(len(places), -1), cols[0] + first), -1)
                fixed[number] = cols, counts[0] + len(sinks)
        widest = max((stripes_taken(p, len(places)) for p in table.patterns if p.kind == "stripes"), default=0)
        columns = stripe_columns(table.mass_at(places.share))[..., :widest] + first
        return cls(table.patterns, order, fixed, columns.int(), sinks.int(), torch.tensor(prices))

    def plan(self, groups: Groups, layer: int, batch: int) -> BlockPlan:
        """The lists of one call. layer: row of the tables."""
        order, (first, last) = self.order, self.order.video
        if all(self.patterns[number].kind == "full" for number, _ in groups):
            return keep_all(order)
        rows = [(heads, *self._rows(number, self.columns[layer, heads])) for number, heads in groups]
        shape = sum(len(heads) for heads, *_ in rows), order.slots.shape[1], max(cols.shape[-1] for _, cols, _ in rows)
        cols = torch.zeros(shape, dtype=torch.int32, device=order.slots.device)
        counts = torch.zeros(shape[:2], dtype=torch.int32, device=order.slots.device)
        for heads, kept, count in rows:
            cols[heads, first:last, : kept.shape[-1]] = kept
            counts[heads, first:last] = count
        cols, counts = cols.repeat(batch, 1, 1), counts.repeat(batch, 1)
        return BlockPlan(order.slots, order.slots, order.live, order.live, cols, counts, order.other)

    def _rows(self, number: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Lists of one pattern: cols [V, C] or [X, V, C], counts [V] or [X, V]. columns: [X, C], of the heads."""
        pattern, (first, last) = self.patterns[number], self.order.video
        blocks, device = self.order.slots.shape[1], self.order.slots.device
        if pattern.kind == "full":
            everything = torch.arange(blocks, dtype=torch.int32, device=device).expand(last - first, -1)
            return everything, torch.full((last - first,), blocks, dtype=torch.int32, device=device)
        if pattern.kind != "stripes":
            return self.fixed[number]
        own = torch.arange(first, last, dtype=torch.int32, device=device)[None, :, None]  # X V C from here on
        taken = columns[:, None, : stripes_taken(pattern, last - first)].expand(-1, last - first, -1)
        sinks = self.sinks.expand(*taken.shape[:2], -1)
        missing = (taken != own).all(-1)  # the own block is the last entry, where it is not among the stripes
        cols = torch.cat((sinks, taken, own.expand(len(taken), -1, -1)), -1)
        return cols, cols.shape[-1] - 1 + missing.int()
