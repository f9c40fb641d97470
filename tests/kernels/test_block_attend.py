"""block_attend and its reference against a float64 loop, and the properties that a sparse softmax must have."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import gather_attend, kept_rows
from interspatial.kernels.block_attend import block_attend, block_attend_reference
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask
from torch.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.usefixtures("poisoned")

B, H = 2, 2
TAILS = (None, "row", "block")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
LENGTHS = (1, 63, 64, 65, 129, 1000)  # one token, around one block, a short tail, many ragged blocks
CASES = [
    (tokens, text, kept, bias)
    for tokens in LENGTHS
    for text in ("absent", "before", "after")
    for kept in ("none", "some", "all")
    for bias in ("plain", "biased")
    if tokens < 1000 or kept == "some"
]


@pytest.mark.parametrize(("tokens", "text", "kept", "bias"), CASES)
def test_reference_and_gather_match_a_float64_loop(tokens, text, kept, bias, case, assert_near):
    one = case(tokens, text, kept)
    key_bias = one.bias if bias == "biased" else None
    for tail in TAILS:
        want = one.truth(tail, key_bias)
        for attend in (block_attend_reference, block_attend):
            got = attend(*one.qkv, one.plan, key_bias=key_bias, tail=tail, return_lse=True)
            assert_near(got, want)
        assert torch.equal(block_attend(*one.qkv, one.plan, key_bias=key_bias, tail=tail), got[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_head_dims_and_dtypes(dim, dtype, case, assert_near):
    one = case(300, "before", dim=dim, dtype=dtype)
    for tail in TAILS:
        got = block_attend(*one.qkv, one.plan, key_bias=one.bias, tail=tail, return_lse=True)
        assert got[0].dtype == dtype and got[1].dtype == torch.float32
        assert_near(got, one.truth(tail, one.bias), TOLERANCE[dtype])


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("how", ["full", "uniform lists", "lists"])
def test_keeping_everything_is_dense_attention(how, tail, case):
    one = case(129, "after", "all")
    plan = one.plan
    tables = plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, plan.cols
    if how == "full":
        plan = BlockPlan(*tables, plan.counts, ((0, len(one.blocks)),))
    elif how == "uniform lists":
        plan = BlockPlan(*tables)
    assert plan.sees_everything == (how != "lists")
    dense = [x.transpose(1, 2) for x in one.qkv]
    for key_bias in (None, one.bias):
        mask = None if key_bias is None else key_bias[:, None, None].expand(-1, -1, 129, -1)
        want = scaled_dot_product_attention(*dense, attn_mask=mask, scale=0.1).transpose(1, 2)
        got = block_attend(*one.qkv, plan, key_bias=key_bias, tail=tail, scale=0.1)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", ["none", "some"])
def test_row_tail_is_dense_when_keys_are_constant_inside_blocks(kept, case, assert_near):
    one = case(400, "before", kept)
    q, k, v = one.qkv
    for block in one.blocks:
        k[:, block] = k[:, block[:1]]
    got = block_attend(q, k, v, one.plan, key_bias=one.bias, tail="row", return_lse=True)
    one.keep[:] = True
    assert_near(got, one.truth(bias=one.bias))


def test_block_tail_is_row_tail_when_queries_are_constant_inside_blocks(case):
    one = case(400, "after")
    q, k, v = one.qkv
    for block in one.blocks:
        q[:, block] = q[:, block[:1]]
    row, block = (block_attend(q, k, v, one.plan, tail=tail) for tail in ("row", "block"))
    torch.testing.assert_close(row, block, atol=1e-5, rtol=0)


def test_one_list_serves_all_heads_and_equal_lists_need_no_counts(case, slot_table, assert_near):
    one = case(333)
    count = len(one.blocks)
    one.keep[:] = False
    for i in range(count):
        one.keep[:, i, [i, (i + 2) % count]] = True
    slots, live = slot_table(one.blocks)
    plan = BlockPlan(slots, slots, live, live, kept_lists(one.keep[:1], width=2)[0])
    for tail in TAILS:
        assert_near([block_attend(*one.qkv, plan, tail=tail)], one.truth(tail)[:1])


def test_every_head_may_have_its_own_geometry(case, slot_table, assert_near):
    cases = [case(200, size=40, seed=seed) for seed in range(20)]
    cases = [one for one in cases if len(one.blocks) == len(cases[0].blocks)][: B * H]
    tables = [slot_table(one.blocks, width=40) for one in cases]
    slots, live = (torch.cat(x) for x in zip(*tables, strict=True))
    keep, bias = cases[0].keep, cases[0].bias
    keep[:, 0] = True
    plan = BlockPlan(slots, slots, live, live, *kept_lists(keep), ((0, 1),))
    for one in cases:
        one.keep, one.qkv = keep, cases[0].qkv
    for tail in TAILS:
        truths = [one.truth(tail, bias) for one in cases]
        for attend in (block_attend, block_attend_reference):
            got = attend(*cases[0].qkv, plan, key_bias=bias, tail=tail, return_lse=True)
            for g, want in enumerate(truths):
                b, h = divmod(g, H)
                assert_near([x[b, :, h] for x in got], [x[b, :, h] for x in want])


def test_queries_may_be_fewer_than_keys(case, slot_table, assert_near):
    one = case(150)
    q, k, v = one.qkv
    here = torch.tensor(one.blocks[1])
    slots, live = slot_table(one.blocks)
    own, own_live = slot_table([list(range(len(here)))])
    plan = BlockPlan(own, slots, own_live, live, *kept_lists(one.keep[:, 1:2]))
    for tail in TAILS:
        want = [x[:, here] for x in one.truth(tail)]
        for attend in (block_attend, block_attend_reference):
            assert_near(attend(q[:, here], k, v, plan, tail=tail, return_lse=True), want)


def test_entries_past_the_count_are_ignored(case):
    one = case(500)
    plan = one.plan
    past = torch.arange(plan.cols.shape[2]) >= plan.counts[..., None]
    for tail in TAILS:
        want = block_attend(*one.qkv, plan, tail=tail)
        for junk in (-1, 0, 2**31 - 1):
            cols = plan.cols.masked_fill(past, junk)
            other = BlockPlan(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, cols, plan.counts)
            assert torch.equal(block_attend(*one.qkv, other, tail=tail), want)


def test_lists_of_all_lengths_may_share_a_batch(monkeypatch, case, assert_near):
    """As on devices, where grouping rows by the length of their lists would wait for the device."""
    one = case(500, "before")
    one.keep[0, -1] = False
    monkeypatch.setattr(gather_attend, "suits_order", lambda q: False)
    monkeypatch.setattr(kept_rows.KeptRows, "_groups", lambda rows: [(*rows._rows(), rows.plan.cols.shape[2])])
    for tail in TAILS:
        got = block_attend(*one.qkv, one.plan, key_bias=one.bias, tail=tail, return_lse=True)
        assert_near(got, one.truth(tail, one.bias))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rows_that_see_nothing_are_zero(dtype, case):
    bias = torch.zeros(B, 129)
    bias[1] = -torch.inf
    for kept in ("none", "some", "all"):
        one = case(129, "before", kept, dtype=dtype)
        for tail in TAILS:
            out, lse = block_attend(*one.qkv, one.plan, key_bias=bias, tail=tail, return_lse=True)
            assert (out[1] == 0).all() and (lse[1] == -torch.inf).all()
            assert out[0].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_common_bias_changes_only_the_lse(dtype, case, assert_near):
    one = case(129, "before", dtype=dtype)
    for tail in TAILS:
        want, base = block_attend(*one.qkv, one.plan, tail=tail, return_lse=True)
        for shift in (-300.0, 300.0):
            bias = torch.full((B, 129), shift)
            got = block_attend(*one.qkv, one.plan, tail=tail, key_bias=bias, return_lse=True)
            assert_near(got, (want, base + shift), TOLERANCE[dtype] + 1e-4)  # fp32 numbers near 300 are 3e-5 apart
        for shift in (-1e30, -1e9, 1e9):
            bias = torch.full((B, 129), shift)
            assert block_attend(*one.qkv, one.plan, tail=tail, key_bias=bias).isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_masks_of_large_negative_numbers_work(dtype, case):
    one = case(129, "before", dtype=dtype)
    others = [j for j in range(len(one.blocks)) if j != 1]
    sees = kept_mask(one.plan)[..., others].any(-1).all(0)  # rows with something beside block 1
    rows = [t for i, block in enumerate(one.blocks) if sees[i] for t in block]
    for low in (-1e9, torch.finfo(dtype).min):
        gone, masked = torch.zeros(B, 129), torch.zeros(B, 129)
        gone[:, one.blocks[1]], masked[:, one.blocks[1]] = -torch.inf, low
        for tail in TAILS:
            want, got = (block_attend(*one.qkv, one.plan, key_bias=x, tail=tail) for x in (gone, masked))
            assert got.isfinite().all()
            torch.testing.assert_close(got[:, rows], want[:, rows], atol=TOLERANCE[dtype], rtol=0)
