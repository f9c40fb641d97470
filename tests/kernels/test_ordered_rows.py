"""The two ways to attend kept blocks: in block order (the CPU's) and by gathering rows (devices)."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import gather_attend, ordered_rows
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan, kept_lists
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.usefixtures("poisoned")

B, H = 2, 2
TAILS = (None, "row", "block")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
CASES = [
    (tokens, text, kept, bias)
    for tokens in (1, 65, 1000)
    for text in ("absent", "before")
    for kept in ("none", "some")
    for bias in ("plain", "biased")
    if tokens < 1000 or (kept, bias) != ("none", "plain")
]


def attend(one, bias: str = "plain", **more):
    return block_attend(*one.qkv, one.plan, key_bias=one.bias if bias == "biased" else None, backend="gather", **more)


@pytest.mark.parametrize(("tokens", "text", "kept", "bias"), CASES)
def test_gathered_rows_match_a_float64_loop_on_the_cpu_too(tokens, text, kept, bias, monkeypatch, case, assert_near):
    monkeypatch.setattr(gather_attend, "suits_order", lambda q: False)
    one = case(tokens, text, kept)
    for tail in TAILS:
        want = one.truth(tail, one.bias if bias == "biased" else None)
        assert_near(attend(one, bias, tail=tail, return_lse=True), want)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_both_ways_agree(dtype, monkeypatch, case, assert_near):
    one = case(1000, "after", dim=96, dtype=dtype)
    for tail in TAILS:
        ordered = attend(one, "biased", tail=tail, return_lse=True)
        with monkeypatch.context() as patch:
            patch.setattr(gather_attend, "suits_order", lambda q: False)
            gathered = attend(one, "biased", tail=tail, return_lse=True)
        assert ordered[0].dtype == gathered[0].dtype == dtype
        assert_near(ordered, [x.double() for x in gathered], TOLERANCE[dtype])


@pytest.mark.parametrize("bias", ["plain", "biased"])
@pytest.mark.parametrize(("threads", "chunk"), [(2, 2048), (7, 2048), (7, 1), (7, 130)])
def test_several_query_blocks_and_some_keys_at_a_time(threads, chunk, bias, monkeypatch, case, assert_near):
    """Ragged lists of all lengths; a chunk of one block, of two, of all."""
    one = case(1000, "before")
    monkeypatch.setattr(ordered_rows.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(ordered_rows, "CHUNK", chunk)
    for tail in TAILS:
        want = one.truth(tail, one.bias if bias == "biased" else None)
        assert_near(attend(one, bias, tail=tail, return_lse=True, max_bytes=1 << 30), want)


def test_a_query_block_may_be_empty_and_short_ones_share_a_piece(monkeypatch, case, slot_table, assert_near):
    one = case(300)
    monkeypatch.setattr(ordered_rows.torch, "get_num_threads", lambda: 3)
    slots, live = slot_table([*one.blocks, []])
    keep = torch.cat((one.keep, torch.ones(B * H, 1, len(one.blocks))), 1).bool()
    own_slots, own_live = slot_table(one.blocks)
    plan = BlockPlan(slots, own_slots, live, own_live, *kept_lists(keep))
    for tail in TAILS:
        assert_near(block_attend(*one.qkv, plan, tail=tail, return_lse=True, backend="gather"), one.truth(tail))


@pytest.mark.parametrize(("tail", "biased"), [(None, True), ("row", False), ("block", True)])
def test_memory_is_one_head_and_a_query_block_or_the_bound(tail, biased, monkeypatch):
    """What the allocator hands out beyond the output and the block means."""
    tokens, size, kept, dim = 512, 32, 12, 64
    draw = torch.Generator().manual_seed(0)
    slots, live = torch.arange(tokens, dtype=torch.int32).view(1, -1, size), torch.full((1, tokens // size), size)
    cols = torch.rand(2, 16, 16, generator=draw).argsort(-1)[..., :kept].sort(-1).values.int()
    plan = BlockPlan(slots, slots, live, live, cols)
    q, k, v = (torch.randn(1, tokens, 2, dim, generator=draw) for _ in "qkv")
    bias = torch.linspace(-1, 0, tokens)[None] if biased else None
    monkeypatch.setattr(ordered_rows, "PIECES", 2)
    monkeypatch.setattr(ordered_rows.torch, "get_num_threads", lambda: 64)

    def peak(max_bytes: int) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
            block_attend(q, k, v, plan, key_bias=bias, tail=tail, max_bytes=max_bytes, backend="gather")
        held = sorted((event.time_range.start, event.self_cpu_memory_usage) for event in watched.events())
        return int(torch.tensor([size for _, size in held]).cumsum(0).max())

    given = q.nbytes + (4 * q.nbytes // size if tail else 0)
    head = 8 * tokens * dim
    pooled = tokens // size if tail else 0
    width = kept * size + pooled
    block = 4 * (width * (2 * dim + size + 4) + 2 * (3 * size * dim + 4 * pooled))
    least, more = peak(1), peak(head + 4 * block)
    assert given + head < least < given + 1.1 * (head + block)
    assert least + 2 * block < more < given + 1.1 * (head + 4 * block)


@pytest.mark.parametrize("tiles", [False, True])
def test_order_suits_the_cpu_unless_it_multiplies_bfloat16_by_tiles(tiles, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles}, raising=False)
    for dtype in TOLERANCE:
        q = torch.zeros(1, 1, 1, 8, dtype=dtype)
        assert ordered_rows.suits_order(q) == (not tiles or dtype != torch.bfloat16)
        assert not ordered_rows.suits_order(q.to("meta"))
