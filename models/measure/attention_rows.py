"""Exact attention for a few rows of a call, and how far from it an approximation of the same call is.

Sparse VideoGen (arXiv 2502.01776) judges its masks on such rows, drawn at random from the first frames. Here every
frame has its share, and the rows are the same in every step, so that figures can be compared.
"""
# B batch   N tokens   H heads   D head dim   R sampled rows   K key blocks   Q query blocks   S slots per block
# T frames, P tokens of a frame   g (batch, head) pairs of a chunk   G = 1 (shared geometry) or B * H

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan, block_of
from ...kernels.head_rows import head_rows
from ...kernels.pool_blocks import slot_bias
from ..layout import TokenLayout

CHUNK_BYTES = 128 << 20  # of scores and keys at a time: one head of 75,600 tokens and 256 rows takes 155 MB in one go
GOLDEN = 40503  # 2**16 times the golden ratio's fraction: its multiples are the most even places in an interval


def sample_rows(layout: TokenLayout, count: int, device: torch.device | str | None = None) -> Tensor:
    """Video tokens that stand for all: every frame has its share, and each row its own part of the frame.

    count: R; all video tokens where there are no more
    returns: int64 [R], ascending; the same at every call, made on the device without waiting for it
    """
    frames, size, count = layout.grid[0], layout.frame_tokens, min(count, len(layout.video))
    if count < 1:
        raise ValueError(f"Sampling rows of attention needs 1 row or more, not {count}.")
    row, half = torch.arange(count, device=device), frames // 2
    frame = ((row + 1) * frames - half - 1) // count  # frame f has rows (f * R + half) // T up to those of f + 1
    first, end = ((frame + more) * count + half for more in (0, 1))
    first, end = first // frames, end // frames
    part, parts = row - first, end - first
    low, high = part * size // parts, (part + 1) * size // parts
    return layout.video.start + frame * size + low + (row * GOLDEN % 65536) * (high - low) // 65536


def exact_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, *, scale: float | None = None, key_bias: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of some query rows over every key, in fp32.

    q, k, v: [B, N, H, D]
    rows: int64 [R]
    key_bias: fp32 [B, N], added to the logits, -inf allowed
    returns: output fp32 [B, R, H, D] and natural log-sum-exp of the logits fp32 [B, R, H]; a row without a key is 0
        with lse -inf
    """
    batch, tokens, heads, dim = k.shape
    scale = dim**-0.5 if scale is None else scale
    query = q.index_select(1, rows).float() * scale
    out = torch.empty(query.shape, device=q.device)
    lse = torch.empty(query.shape[:3], device=q.device)
    for b in range(batch):
        for some, part in _chunks(heads, len(rows), 4 * tokens, 2 * dim, chunk_bytes):
            score = query[b, part, some].transpose(0, 1) @ k[b, :, some].float().permute(1, 2, 0)  # g R N
            if key_bias is not None:
                score += key_bias[b]
            total = score.logsumexp(-1, keepdim=True)
            weight = score.sub_(total.masked_fill(total == -torch.inf, 0)).exp_()
            out[b, part, some] = (weight @ v[b, :, some].float().transpose(0, 1)).transpose(0, 1)
            lse[b, part, some] = total[..., 0].T
    return out, lse


def relative_l2(found: Tensor, exact: Tensor, over: tuple[int, ...] = (1, 3)) -> Tensor:
    """||found - exact|| / ||exact||, by default per head: over rows and D.

    found, exact: [B, R, H, D]
    returns: fp32 [B, H], or what is left of the shape; 0 where both are zero
    """
    exact = exact.float()
    apart = torch.linalg.vector_norm(found.float() - exact, dim=over)
    return apart / torch.linalg.vector_norm(exact, dim=over).clamp(min=1e-30)


def mass_of_rows(
    q: Tensor, k: Tensor, rows: Tensor, lse: Tensor, k_slots: Tensor, *, scale: float | None = None,
    key_bias: Tensor | None = None, chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:  # fmt: skip
    """Share of each row's exact softmax that lies in each key block.

    q, k: [B, N, H, D]
    rows: int64 [R]
    lse: fp32 [B, R, H] of `exact_rows`
    k_slots: int32 [G, K, S], as in BlockPlan
    returns: fp32 [B * H, R, K]; sums to 1 over K, or to 0 in a row without a key
    """
    batch, _, heads, dim = q.shape
    pairs, (blocks, size) = batch * heads, k_slots.shape[1:]
    scale = dim**-0.5 if scale is None else scale
    query = (q.index_select(1, rows).float() * scale).transpose(1, 2).flatten(0, 1)  # B*H R D
    total = lse.transpose(1, 2).flatten(0, 1)[..., None]
    total = total.masked_fill(total == -torch.inf, 0)
    table, bias = head_rows(k), slot_bias(k_slots, key_bias, heads)
    out = torch.empty(pairs, len(rows), blocks, device=q.device)
    every = torch.arange(pairs, device=q.device)
    for some, part in _chunks(pairs, len(rows), 4 * blocks * size, 2 * dim, chunk_bytes):
        pair = every[some]
        key = table.take(_of(k_slots, pair, pairs).flatten(1), pair).float()
        score = torch.baddbmm(_of(bias, pair, pairs).flatten(1)[:, None], query[some, part], key.transpose(1, 2))
        out[some, part] = score.sub_(total[some, part]).exp_().unflatten(-1, (blocks, size)).sum(-1)
    return out


def kept_of_rows(plan: BlockPlan, rows: Tensor, pairs: int) -> Tensor:
    """Which key blocks some query rows see.

    rows: int64 [R], tokens that have a query slot
    pairs: B * H
    returns: bool [B * H or 1, R, K]; 1 when the plan is the same for all
    """
    every = torch.arange(max(len(plan.q_slots), len(plan.cols)), device=rows.device)
    block = _of(block_of(plan.q_slots, rows), every, len(every))  # [heads, R]
    seen, keys = _of(plan.cols, every, len(every)), plan.k_slots.shape[1]
    cols = seen.gather(1, block[..., None].expand(-1, -1, seen.shape[2])).long()
    if plan.counts is not None:
        count = _of(plan.counts, every, len(every)).gather(1, block)
        cols = cols.masked_fill(torch.arange(cols.shape[2], device=rows.device) >= count[..., None], keys)
    kept = torch.zeros(*block.shape, keys + 1, dtype=torch.bool, device=rows.device)
    kept = kept.scatter_(-1, cols.clamp(0, keys), True)[..., :keys]
    for first, stop in plan.full:
        kept |= ((block >= first) & (block < stop))[..., None]
    return kept


def recall(
    plan: BlockPlan, q: Tensor, k: Tensor, rows: Tensor, lse: Tensor, *, scale: float | None = None,
    key_bias: Tensor | None = None, chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:  # fmt: skip
    """Share of the exact softmax mass of some rows that lies in the blocks that the plan keeps, their mean.

    q, k: [B, N, H, D]
    rows: int64 [R]
    lse: fp32 [B, R, H] of `exact_rows`
    returns: fp32 [B, H]; a row without a key counts as 1
    """
    mass = mass_of_rows(q, k, rows, lse, plan.k_slots, scale=scale, key_bias=key_bias, chunk_bytes=chunk_bytes)
    share = mass.mul_(kept_of_rows(plan, rows, len(mass))).sum(-1).view(q.shape[0], q.shape[2], -1)
    return share.masked_fill(lse.transpose(1, 2) == -torch.inf, 1).mean(-1)


def _of(table: Tensor, pair: Tensor, pairs: int) -> Tensor:
    """The entry of each (batch, head) pair, of a table made for all, one batch entry or one pair each."""
    return table[pair * len(table) // pairs]


def _chunks(heads: int, rows: int, row_bytes: int, others: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Heads and rows to take at a time: their scores, and keys as large as `others` rows, are about `most` bytes."""
    step = min(rows, max(64, most // row_bytes - others))  # fewer rows would convert the keys once more and again
    together = max(1, most // (row_bytes * (step + others)))
    for head in range(0, heads, together):
        for row in range(0, rows, step):
            yield slice(head, head + together), slice(row, row + step)
