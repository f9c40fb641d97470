"""A plan seen from the video: how much of it is kept, and which places one place looks at."""
# N tokens   H heads   D head dim   Q query blocks   K key blocks   g heads of a chunk   G = 1 or B * H
# V video tokens

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan, block_of, kept_mask
from ..attention.orders import BlockOrder
from ..call import AttentionCall
from ..layout import Segment
from .attention_rows import exact_rows, kept_of_rows, mass_of_rows

MAP_BYTES = 128 << 20  # of maps at a time; lists and maps of a head take 16 bytes for each pair of blocks


def kept_shares(plan: BlockPlan, video: Segment, map_bytes: int = MAP_BYTES) -> tuple[float, float]:
    """Share of the video-to-video blocks that is kept, and share of the whole score matrix; mean over heads."""
    heads = max(len(plan.q_slots), len(plan.cols))
    step = max(1, map_bytes // (16 * plan.q_slots.shape[1] * plan.k_slots.shape[1]))
    blocks, tokens = [], []
    for start in range(0, heads, step):
        part = _heads(plan, slice(start, start + step))
        keep = kept_mask(part).float()
        sides = ((part.q_slots, part.q_live), (part.k_slots, part.k_live))
        blocks.append(_share(keep, *(_video_blocks(slots, live, video) for slots, live in sides)))
        tokens.append(_share(keep, *(live.float() for _, live in sides)))
    return float(torch.cat(blocks).mean()), float(torch.cat(tokens).mean())


def looks(plan: BlockPlan, token: int, video: Segment, pairs: int) -> Tensor:
    """Share of the heads in which the block of `token` keeps each video token.

    pairs: B * H
    returns: fp32 [V]
    """
    device = plan.cols.device
    kept = kept_of_rows(plan, torch.tensor([token], device=device), pairs)[:, 0]
    return _by_token(kept, plan.k_slots, video)


def best_looks(call: AttentionCall, order: BlockOrder, token: int, density: float) -> Tensor:
    """As `looks`, for the choice that keeps most of the exact softmax of the rows of this block.

    density: share of the video blocks
    returns: fp32 [V]
    """
    first, last = order.video
    video, bias = call.layout.video, call.key_bias
    bias = None if bias is None else bias.expand(len(call.q), -1)
    rows = query_rows(order, token)
    lse = exact_rows(call.q, call.k, call.v, rows, scale=call.scale, key_bias=bias)[1]
    mass = mass_of_rows(call.q, call.k, rows, lse, order.slots, scale=call.scale, key_bias=bias).sum(1)[:, first:last]
    best = mass.topk(max(1, round(density * (last - first))), dim=-1).indices + first
    kept = torch.zeros(len(mass), order.slots.shape[1], dtype=torch.bool, device=mass.device).scatter_(1, best, True)
    return _by_token(kept, order.slots, video)


def query_rows(order: BlockOrder, token: int) -> Tensor:
    """The tokens that share a block with `token`: int64 [live]."""
    block = block_of(order.slots, torch.tensor([token], device=order.slots.device))[0, 0]
    rows = order.slots[0, block].long()
    return rows[rows >= 0]


def _by_token(kept: Tensor, slots: Tensor, video: Segment) -> Tensor:
    """Mean over heads of kept blocks, told of each video token. kept: bool [heads or 1, K]; slots: int32 [G, K, S]"""
    block = block_of(slots, torch.arange(video.start, video.stop, device=slots.device))  # G V
    heads = max(len(kept), len(block))
    return kept.expand(heads, -1).gather(1, block.expand(heads, -1)).float().mean(0)


def _video_blocks(slots: Tensor, live: Tensor, video: Segment) -> Tensor:
    """1 for blocks of video tokens, which share a block with nothing else: fp32 [G, K]."""
    first = slots[..., 0]
    return ((first >= video.start) & (first < video.stop) & (live > 0)).float()


def _share(keep: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Kept weight over all weight: fp32 [g]. keep: fp32 [1 or g, Q, K]; query, key: fp32 [1 or g, Q or K]"""
    return torch.einsum("gq,gqk,gk->g", query, keep, key) / (query.sum(-1) * key.sum(-1))


def _heads(plan: BlockPlan, some: slice) -> BlockPlan:
    """The plan of some heads. Tables for all stay as they are."""
    names = ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts")
    tables = ((name, getattr(plan, name)) for name in names)
    return replace(plan, **{name: table[some] for name, table in tables if table is not None and len(table) > 1})
