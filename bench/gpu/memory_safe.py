"""Tensors with more than 2^31 numbers: results at their far end, against fp32."""
# B batch   N tokens   H heads   D head dim   R rows of a block   W keys that they see   K key blocks   G = B * H

from __future__ import annotations

from functools import partial

import torch
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.pool_blocks import pool_blocks
from interspatial.models.attention.orders import BlockOrder
from interspatial.models.attention.select import top_blocks
from interspatial.models.layout import arrange
from torch import Tensor

from bench.gpu.calls import attend_blocks
from bench.gpu.contenders import strips
from bench.gpu.stage import Bench, Stage
from bench.gpu.timing import timed

DENSITY, DIM = 0.1, 128
# Grid, batch, heads. One tensor that holds q, k and v side by side: 15,360 numbers a token, so the last tokens lie past
# 2^31. Four clips: 2.5e9 numbers in each of q, k and v.
CASES = {"slices of one tensor": ((39, 45, 80), 1, 40), "batch of 4": ((34, 45, 80), 4, 40)}
SMALL = (2, 15, 20), 2


def tensors(name: str, bench: Bench) -> tuple[tuple[int, int, int], list[Tensor]]:
    """Grid; q, k, v: [B, N, H, D]"""
    grid, batch, heads = CASES[name]
    if bench.smoke:
        grid, heads = SMALL
    tokens = grid[0] * grid[1] * grid[2]
    make = lambda *size: torch.randn(size, device=bench.device, dtype=torch.bfloat16)  # noqa: E731
    if batch == 1:
        return grid, list(make(1, tokens, 3, heads, DIM).unbind(2))
    return grid, [make(batch, tokens, heads, DIM) for _ in "qkv"]


def planned_rows(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, g: int, block: int) -> tuple[Tensor, Tensor]:
    """Rows of one query block of head g in fp32, tail row: their tokens, int64 [R]; what they should be, [R, D]."""
    b, h = divmod(g, q.shape[2])
    tokens = plan.q_slots[0, block, : int(plan.q_live[0, block])].long()
    count = plan.cols.shape[2] if plan.counts is None else int(plan.counts[g % len(plan.counts), block])
    kept = plan.cols[g % len(plan.cols), block, :count].long()
    seen = plan.k_slots[0, kept].flatten().long()
    seen = seen[seen >= 0]
    rest = torch.ones(plan.k_slots.shape[1], dtype=torch.bool, device=q.device)
    rest[kept] = False
    slots, live = plan.k_slots[0, rest].long(), plan.k_live[0, rest]
    mean = lambda x: (x[b, slots.clamp(min=0), h].float() * (slots >= 0)[..., None]).sum(1) / live[:, None]  # noqa: E731
    key = torch.cat((k[b, seen, h].float(), mean(k)))
    value = torch.cat((v[b, seen, h].float(), mean(v)))
    logits = q[b, tokens, h].float() @ key.T * q.shape[-1] ** -0.5
    logits[:, len(seen) :] += live.log()
    return tokens, logits.softmax(-1) @ value


def far_end(q: Tensor, k: Tensor, v: Tensor, order: BlockOrder, device: str) -> dict[str, float]:
    """Relative L2 of the first and the last head's last two blocks, in the first and the last entry of the batch."""
    plan = top_blocks(q, k, order, DENSITY)
    out = attend_blocks(q, k, v, plan, "row", device)
    pooled = pool_blocks(k, order.slots)[0]
    heads, last = q.shape[2], order.video[1]
    lost = size = off = whole = 0.0
    for g in {0, heads - 1, (len(q) - 1) * heads, len(q) * heads - 1}:
        b, h = divmod(g, heads)
        for block in (last - 2, last - 1):
            tokens, want = planned_rows(q, k, v, plan, g, block)
            lost += float((out[b, tokens, h].float() - want).square().sum())
            size += float(want.square().sum())
            mean = k[b, tokens, h].float().mean(0)
            off += float((pooled[b, block, h].float() - mean).square().sum())
            whole += float(mean.square().sum())
    return {"error": (lost / size) ** 0.5, "pooling_error": (off / whole) ** 0.5}


@torch.no_grad()
def run(bench: Bench) -> None:
    for name in CASES:
        key = {"what": "far end", "shape": name, "setting": f"density {DENSITY:g}, tail row"}
        if bench.has(**key):
            continue
        with bench.attempt(**key):
            grid, (q, k, v) = tensors(name, bench)
            order = strips(arrange([("video", grid)]), bench.device)
            found = far_end(q, k, v, order, bench.device)
            plan = top_blocks(q, k, order, DENSITY)
            ms, mb = timed(partial(attend_blocks, q, k, v, plan, "row", bench.device), bench.device)
            farthest = sum((n - 1) * stride for n, stride in zip(q.shape, q.stride(), strict=True))
            bench.put(**key, **found, ms=ms, mb=mb, tokens=q.shape[1], batch=len(q), heads=q.shape[2],
                      farthest_number=farthest, past_31_bits=farthest >= 2**31)  # fmt: skip


STAGES = (
    Stage(
        "memory_safe",
        "Random q, k and v in bfloat16 whose last numbers lie more than 2^31 numbers behind their first: a slice of "
        "one tensor that holds all three, and a batch of four clips. error: relative L2 of the last two query blocks "
        "of the first and last head and batch entry to fp32 arithmetic over the same plan; pooling_error: the same of "
        "the mean keys of these blocks. ms: one call.",
        40,
        run,
    ),
)
