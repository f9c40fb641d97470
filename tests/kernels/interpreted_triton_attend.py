"""The Triton backend of block attention against a float64 loop, the reference and the gather backend.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it. Every step of a program costs
milliseconds here, so cases are small and serve several questions at once.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from interspatial.kernels import triton_attend
from interspatial.kernels.attend_call import AttendCall, Reshape
from interspatial.kernels.block_attend import block_attend, block_attend_reference
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask

pytestmark = pytest.mark.usefixtures("poisoned", "interpreter")

B, H = 2, 2
TAILS = (None, "row", "block")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
CASES = [
    (1, "absent", "none", "plain"),  # a row that is left with its own block's mean, or with nothing
    (1, "absent", "all", "biased"),
    (63, "before", "some", "biased"),
    (64, "after", "none", "biased"),
    (65, "after", "some", "plain"),  # text is a block of 7, full, after a short one
    (65, "before", "all", "biased"),
    (129, "before", "some", "biased"),
    (129, "absent", "all", "plain"),
]


def attend(q, k, v, plan, *, scale=None, **options):
    """As `block_attend`, on this backend alone."""
    call = AttendCall(q, k, v, plan, q.shape[-1] ** -0.5 if scale is None else scale, **options)
    assert call.why_not() is None and triton_attend.why_not(call) is None
    out, lse = triton_attend.attend(call)
    return (out, lse) if call.return_lse else out


def one_head(x: torch.Tensor) -> torch.Tensor:
    return x[:1, :, :1]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("tokens", "text", "kept", "bias"), CASES)
def test_it_matches_a_float64_loop(tokens, text, kept, bias, tail, case, assert_near):
    one = case(tokens, text, kept)
    key_bias = one.bias if bias == "biased" else None
    got = attend(*one.qkv, one.plan, key_bias=key_bias, tail=tail, return_lse=True, scale=0.3)
    assert_near(got, one.truth(tail, key_bias, 0.3))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [24, 64, 96, 128, 256])
def test_head_dims_and_dtypes_agree_with_the_other_ways(dim, dtype, case, assert_near):
    """The tails take turns, so that each meets every dtype and most head dims."""
    one = case(70, "before", dim=dim, dtype=dtype)
    tail = TAILS[(dim // 8 + [*TOLERANCE].index(dtype)) % 3]
    options = {"key_bias": one.bias, "tail": tail, "return_lse": True}
    got = {"triton": attend(*one.qkv, one.plan, **options)}
    got["gather"] = block_attend(*one.qkv, one.plan, **options, backend="gather")
    got["reference"] = block_attend_reference(*one.qkv, one.plan, **options)
    assert got["triton"][0].dtype == dtype and got["triton"][1].dtype == torch.float32
    assert_near(got["triton"], one.truth(tail, one.bias), TOLERANCE[dtype])
    for one_way, other in combinations(got, 2):
        assert_near(got[one_way], got[other], 2 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("tokens", "dim", "text", "tail"),
    [(1000, 16, "after", "row"), (1000, 256, "before", "block"), (10_007, 64, "absent", None)],
)
def test_many_blocks(tokens, dim, text, tail, case, slot_table, assert_near):
    """One head, two blocks kept by each; over 64 blocks, so three words of the map and several steps of a tail."""
    one = case(tokens, text, dim=dim, size=64 if tokens > 1000 else 16)
    keep, count = torch.zeros(1, len(one.blocks), len(one.blocks), dtype=torch.bool), len(one.blocks)
    assert count > 64
    for i in range(count):
        keep[0, i, [i, i * 7 % count]] = True
    keep[0, one.written] = True
    one.keep = keep.expand(B * H, -1, -1)
    slots, live = slot_table(one.blocks)
    cols, counts = kept_lists(keep, width=2)
    plan = BlockPlan(slots, slots, live, live, cols, counts, tuple((i, i + 1) for i in one.written))
    got = attend(*(one_head(x) for x in one.qkv), plan, tail=tail, return_lse=True)
    if tokens > 1000:
        want = block_attend(*(one_head(x) for x in one.qkv), plan, tail=tail, return_lse=True, backend="gather")
    else:
        want = [one_head(x) for x in one.truth(tail)]
    assert_near(got, want)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("size", [16, 40, 100])
def test_block_sizes(size, tail, case, assert_near):
    """Several key blocks in a step; no power of two; several programs and steps for a block."""
    one = case(110, "before", size=size)
    got = attend(*one.qkv, one.plan, key_bias=one.bias, tail=tail, return_lse=True)
    assert_near(got, one.truth(tail, one.bias))


@pytest.mark.parametrize("tail", TAILS)
def test_every_head_may_have_its_own_geometry(tail, case, slot_table, assert_near):
    cases = [case(90, size=30, seed=seed) for seed in range(20)]
    cases = [one for one in cases if len(one.blocks) == len(cases[0].blocks)][: B * H]
    tables = [slot_table(one.blocks, width=30) for one in cases]
    slots, live = (torch.cat(x) for x in zip(*tables, strict=True))
    keep, bias = cases[0].keep, cases[0].bias
    keep[:, 0] = True
    plan = BlockPlan(slots, slots, live, live, *kept_lists(keep), ((0, 1),))
    for one in cases:
        one.keep, one.qkv = keep, cases[0].qkv
    for key_bias in (bias, None):
        got = attend(*cases[0].qkv, plan, key_bias=key_bias, tail=tail, return_lse=True)
        for g, one in enumerate(cases):
            b, h = divmod(g, H)
            assert_near([x[b, :, h] for x in got], [x[b, :, h] for x in one.truth(tail, key_bias)])


@pytest.mark.parametrize("tail", TAILS)
def test_queries_may_be_fewer_and_lists_shared(tail, case, slot_table, assert_near):
    """One list for all heads without counts; query blocks of another width than key blocks."""
    one = case(150)
    q, k, v = one.qkv
    one.keep[:] = False
    one.keep[:, 1, [0, 2]] = True
    here = torch.tensor(one.blocks[1])
    slots, live = slot_table(one.blocks)
    own, own_live = slot_table([list(range(len(here)))])
    plan = BlockPlan(own, slots, own_live, live, kept_lists(one.keep[:1, 1:2], width=2)[0])
    got = attend(q[:, here], k, v, plan, tail=tail, return_lse=True)
    assert_near(got, [x[:, here] for x in one.truth(tail)])


@pytest.mark.parametrize("kept", ["none", "some"])
def test_rho_and_residual(kept, case):
    """Every row is reshaped, text too, rho is capped, rounding comes last."""
    one = case(100, "after", kept, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(1)
    rho, residual = torch.rand(B, 100, H, generator=draw) * 1.5, torch.randn(one.qkv[0].shape, generator=draw)
    exact, want = [x.float() for x in one.qkv], one.truth()[0].float() * rho.clamp(max=1)[..., None]
    torch.testing.assert_close(attend(*exact, one.plan, reshape=Reshape(rho)), want, atol=1e-5, rtol=0)
    reshape = Reshape(rho, residual.double())
    torch.testing.assert_close(attend(*exact, one.plan, reshape=reshape), want + residual, atol=1e-5, rtol=0)
    got, lse = attend(*one.qkv, one.plan, reshape=Reshape(rho, residual.bfloat16()), return_lse=True)
    torch.testing.assert_close(got.float(), want + residual.bfloat16(), atol=2e-2, rtol=1e-2)
    assert torch.equal(lse, attend(*one.qkv, one.plan, return_lse=True)[1])


@pytest.mark.parametrize("how", ["full", "uniform lists"])
def test_keeping_everything_is_dense_attention(how, case, assert_near):
    one = case(100, "after", "all")
    plan = one.plan
    full = ((0, len(one.blocks)),) if how == "full" else ()
    counts = plan.counts if full else None
    plan = BlockPlan(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, plan.cols, counts, full)
    assert plan.sees_everything
    for tail in TAILS[:2]:
        assert_near(attend(*one.qkv, plan, key_bias=one.bias, tail=tail, return_lse=True), one.truth(bias=one.bias))


@pytest.mark.parametrize("stored", ["B H N D", "fused", "wide rows", "odd rows", "one head"])
def test_strides_are_honoured(stored, case):
    one = case(70, "before")
    q, k, v = one.qkv
    want = attend(q, k, v, one.plan, tail="row")
    if stored == "B H N D":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    elif stored == "fused":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    elif stored == "one head":
        v = v[:, :, :1].expand(-1, -1, H, -1)
        want = attend(q, k, v.contiguous(), one.plan, tail="row")
    else:  # 8 further numbers are read in place, 1 makes a copy
        more = 8 if stored == "wide rows" else 1
        k = torch.cat((k, k[..., :more]), -1)[..., :-more]
    assert torch.equal(attend(q, k, v, one.plan, tail="row"), want)


def test_entries_past_the_count_and_lists_without_entries(case, assert_near):
    one = case(100)
    plan = one.plan
    past = torch.arange(plan.cols.shape[2]) >= plan.counts[..., None]
    tables = plan.q_slots, plan.k_slots, plan.q_live, plan.k_live
    for tail, junk in zip(TAILS, (-1, 2**31 - 1, -(2**31)), strict=True):
        other = BlockPlan(*tables, plan.cols.masked_fill(past, junk), plan.counts)
        assert torch.equal(attend(*one.qkv, other, tail=tail), attend(*one.qkv, plan, tail=tail))
    one.keep[:] = False
    for tail in TAILS:
        got = attend(*one.qkv, BlockPlan(*tables, plan.cols[..., :0]), tail=tail, return_lse=True)
        assert_near(got, one.truth(tail))


@pytest.mark.parametrize("tail", TAILS)
def test_rows_that_see_nothing_and_large_numbers(tail, case, assert_near):
    one = case(70, "before", dtype=torch.bfloat16)
    want, base = attend(*one.qkv, one.plan, tail=tail, return_lse=True)
    bias = torch.full((B, 70), 300.0)
    bias[1] = -torch.inf
    out, lse = attend(*one.qkv, one.plan, key_bias=bias, tail=tail, return_lse=True)
    assert (out[1] == 0).all() and (lse[1] == -torch.inf).all()
    assert_near([out[0], lse[0]], [want[0], base[0] + 300], 1e-2)
    lowest = torch.finfo(torch.float32).min
    bias[0], bias[1] = 1e30, lowest
    assert attend(*one.qkv, one.plan, key_bias=bias, tail=tail).isfinite().all()
    others = [j for j in range(len(one.blocks)) if j != 1]
    sees = kept_mask(one.plan)[..., others].any(-1).all(0)  # rows with something beside block 1
    rows = [t for i, block in enumerate(one.blocks) if sees[i] for t in block]
    gone, masked = torch.zeros(B, 70), torch.zeros(B, 70)
    gone[:, one.blocks[1]], masked[:, one.blocks[1]] = -torch.inf, lowest
    far, none = (attend(*one.qkv, one.plan, key_bias=x, tail=tail)[:, rows] for x in (masked, gone))
    assert far.isfinite().all() and torch.equal(far, none)


@pytest.mark.parametrize("tail", TAILS)
def test_what_is_not_seen_is_not_read(tail, case):
    """Token 0 is what padding slots would read; without a tail the block it is in may hold anything."""
    one = case(150)
    home = next(i for i, block in enumerate(one.blocks) if 0 in block)
    spoilt = [0] if tail else one.blocks[home]
    one.keep[:, :, home] = False
    plan, (q, k, v) = one.plan, one.qkv
    bad = [x.clone() for x in (k, v)]
    for x in bad:
        x[:, spoilt] = torch.nan
    got = attend(q, *bad, plan, tail=tail)
    if tail is None:
        assert torch.equal(got, attend(q, k, v, plan))
    else:  # the mean of that block is NaN for the rows that see it, and no other row is
        one.keep[:, ::2, home] = True
        assert attend(q, k, v, one.plan, tail=tail).isfinite().all() and got.isnan().any()
