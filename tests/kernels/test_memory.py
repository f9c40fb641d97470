"""The bounds on memory that the gather backends state, against what the allocator hands out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from interspatial.kernels import gather_attend
from interspatial.kernels.attend_call import Reshape
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_mass import block_mass
from interspatial.kernels.block_plan import BlockPlan
from torch.profiler import ProfilerActivity, profile

B, H, D, TOKENS, SLOTS = 2, 2, 64, 512, 32
BLOCKS = TOKENS // SLOTS
ALL = ((0, BLOCKS),)


def peak(compute: Callable[[], object]) -> int:
    """The most bytes alive at a time of those allocated by `compute`, whose result it drops."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        compute()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events, "the profiler no longer tells allocations by this name"
    sizes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(sizes.cumsum(0).max())


def problem(dtype: torch.dtype, full: tuple[tuple[int, int], ...] = ()) -> tuple[list[torch.Tensor], BlockPlan]:
    """q, k, v and a plan that keeps a quarter of the blocks."""
    slots = torch.arange(TOKENS, dtype=torch.int32).view(1, -1, SLOTS)
    live = torch.full((1, BLOCKS), SLOTS, dtype=torch.int32)
    draw = torch.Generator().manual_seed(0)
    cols = torch.rand(B * H, BLOCKS, BLOCKS, generator=draw).argsort(-1)[..., : BLOCKS // 4].sort(-1).values.int()
    qkv = [torch.randn(B, TOKENS, H, D, generator=draw).to(dtype) for _ in "qkv"]
    return qkv, BlockPlan(slots, slots, live, live, cols, None, full)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "gathered"])
@pytest.mark.parametrize(
    ("dtype", "tail", "full", "lse", "biased", "reshaped"),
    [
        (torch.float32, "block", (), True, True, False),
        (torch.bfloat16, "row", ((0, 2),), True, False, False),
        (torch.float16, None, ((0, 2),), True, True, True),
        (torch.bfloat16, None, ALL, False, True, True),
    ],
)
def test_block_attend_keeps_its_bound(ordered, dtype, tail, full, lse, biased, reshaped, monkeypatch):
    monkeypatch.setattr(gather_attend, "suits_order", lambda q: ordered)
    (q, k, v), plan = problem(dtype, full)
    options = {
        "tail": tail, "return_lse": lse, "key_bias": torch.zeros(B, TOKENS) if biased else None,
        "reshape": Reshape(torch.ones(B, TOKENS, H), torch.zeros_like(q)) if reshaped else None,
    }  # fmt: skip
    given = q.nbytes + lse * 4 * B * H * TOKENS
    stated = (2 * q.element_size() + 8) * B * BLOCKS * H * D if tail else 0
    stated += 4 * (B if biased else 1) * BLOCKS * SLOTS + 40 * B * H * BLOCKS
    max_bytes = 1 << 20
    extra = peak(lambda: block_attend(q, k, v, plan, **options, max_bytes=max_bytes, backend="gather")) - given
    assert 0 < extra < stated + max_bytes


@pytest.mark.parametrize("tail", [None, "row", "block"])
def test_it_is_the_bound_that_holds_the_memory(tail, monkeypatch):
    monkeypatch.setattr(gather_attend, "suits_order", lambda q: False)
    (q, k, v), plan = problem(torch.float32)
    low, high = (
        peak(lambda at=max_bytes: block_attend(q, k, v, plan, tail=tail, max_bytes=at, backend="gather"))
        for max_bytes in (1 << 20, 1 << 23)
    )
    assert low + (1 << 20) < high


@pytest.mark.parametrize("rows", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_block_mass_keeps_its_bound(dtype, rows):
    (q, k, _), plan = problem(dtype)
    lse, bias = torch.zeros(B, TOKENS, H), torch.zeros(B, TOKENS)
    given = 4 * B * H * BLOCKS * BLOCKS
    stated = 24 * B * BLOCKS * SLOTS + (24 * BLOCKS * rows if rows else 0)
    low, high = (
        peak(lambda at=max_bytes: block_mass(q, k, lse, plan, key_bias=bias, rows=rows, max_bytes=at, backend="gather"))
        for max_bytes in (1 << 18, 1 << 19)
    )
    assert low - given < stated + (1 << 18) < high - given < stated + (1 << 19)
