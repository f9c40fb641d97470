"""The Triton kernel of block attention over keys and values in block order against a float64 loop.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it. Its tiles are for 16-bit numbers; in the
interpreter they run in fp32 too, so that an error of a thousandth cannot hide.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import triton_attend, triton_ordered
from interspatial.kernels.attend_call import AttendCall, Reshape
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.triton_tiles import Tile

pytestmark = pytest.mark.usefixtures("poisoned", "interpreter")

B, H = 2, 2
TAILS = (None, "row", "block")
ONE, TWO, TALL = Tile(64, 64, 4, 2, boxes=1), Tile(64, 128, 8, 2, boxes=2), Tile(128, 128, 8, 2, boxes=2)


def attend(tile, q, k, v, plan, *, scale=None, **options):
    call = AttendCall(q, k, v, plan, q.shape[-1] ** -0.5 if scale is None else scale, **options)
    assert call.why_not() is None and triton_attend.why_not(call) is None
    return triton_attend.attend(call, tile)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("tile", [ONE, TWO, TALL], ids=str)
@pytest.mark.parametrize(
    ("tokens", "text", "kept", "bias"),
    [
        (1, "absent", "all", "biased"),
        (64, "after", "none", "biased"),  # nothing but text and means
        (301, "before", "some", "plain"),  # odd and even numbers of kept blocks
    ],
)
def test_it_matches_a_float64_loop(tokens, text, kept, bias, tile, tail, case, assert_near):
    one = case(tokens, text, kept)
    key_bias = one.bias if bias == "biased" else None
    got = attend(tile, *one.qkv, one.plan, key_bias=key_bias, tail=tail, return_lse=True, scale=0.3)
    assert_near(got, one.truth(tail, key_bias, 0.3))


@pytest.mark.parametrize("scale", [0.4, -0.4])
@pytest.mark.parametrize("tile", [ONE, TWO], ids=str)
def test_whole_blocks_need_no_bias(tile, scale, case, assert_near, slot_table, monkeypatch):
    """Every slot is live and no key has a bias, which the launch knows from shapes; a negative scale needs one."""
    one = case(320)
    order = torch.randperm(320, generator=torch.Generator().manual_seed(1)).view(5, 64)
    one.blocks, one.written = order.tolist(), []
    one.keep = torch.rand(B * H, 5, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    seen = []
    kernels, _ = triton_ordered.found()
    arguments = triton_ordered._arguments
    monkeypatch.setattr(triton_ordered, "_arguments", lambda *x: seen.append(arguments(*x)) or seen[-1])
    assert kernels is not None
    for tail in TAILS:
        got = attend(tile, *one.qkv, one.plan, tail=tail, return_lse=True, scale=scale)
        assert_near(got, one.truth(tail, None, scale))
    assert [x["BIASED"] for x in seen] == [scale < 0] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_head_dims_in_half_precision(dim, dtype, case, assert_near):
    one = case(130, "before", dim=dim, dtype=dtype)
    got = attend(ONE, *one.qkv, one.plan, key_bias=one.bias, tail="row", return_lse=True)
    assert_near(got, one.truth("row", one.bias), {torch.bfloat16: 1.5e-2, torch.float16: 2e-3}[dtype])


def test_key_blocks_of_32(case, assert_near):
    """As the clusters of svg2 are; two of them a step."""
    one = case(150, "after", size=32)
    got = attend(Tile(64, 64, 4, 2, boxes=2), *one.qkv, one.plan, key_bias=one.bias, tail="row", return_lse=True)
    assert_near(got, one.truth("row", one.bias))


def test_heads_in_chunks_and_geometry_of_their_own(case, slot_table, assert_near, monkeypatch):
    """One head in each chunk, each with tables of its own; a full block at either end and one between."""
    monkeypatch.setattr(triton_ordered, "CHUNK_BYTES", 1)
    cases = [case(230, size=64, seed=seed) for seed in range(20)]
    cases = [one for one in cases if len(one.blocks) == len(cases[0].blocks)][: B * H]
    tables = [slot_table(one.blocks, width=64) for one in cases]
    slots, live = (torch.cat(x) for x in zip(*tables, strict=True))
    last = len(cases[0].blocks) - 1
    for full in (((0, 1), (last, last + 1)), ((1, 2),), ()):
        keep = cases[0].keep.clone()
        plain = cases[0].plan
        for start, stop in full:
            keep[:, start:stop] = True
        plan = BlockPlan(slots, slots, live, live, plain.cols, plain.counts, full)
        for tail in TAILS:
            got = attend(TWO, *cases[0].qkv, plan, tail=tail, return_lse=True)
            for g, one in enumerate(cases):
                one.keep, one.qkv = keep, cases[0].qkv
                b, h = divmod(g, H)
                assert_near([x[b, :, h] for x in got], [x[b, :, h] for x in one.truth(tail)])


@pytest.mark.parametrize("residual", [False, True])
def test_it_puts_back_what_was_dropped(residual, case, assert_near):
    one = case(130, "after")
    reshape = Reshape(torch.rand(B, 130, H) * 1.5, torch.randn_like(one.qkv[0]) if residual else None)
    got, _ = attend(TWO, *one.qkv, one.plan, reshape=reshape)
    want = one.truth()[0] * reshape.rho.clamp(max=1)[..., None].double()
    assert_near([got], [want + reshape.residual if residual else want])


def test_a_plan_that_keeps_everything(case, assert_near):
    """Which is asked for with a log-sum-exp: other calls of the kind go to torch."""
    one = case(150, "after", "all")
    plan = one.plan
    blocks = plan.q_slots.shape[1]
    plan = BlockPlan(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, plan.cols, plan.counts, ((0, blocks),))
    assert plan.sees_everything
    assert_near(attend(TWO, *one.qkv, plan, key_bias=one.bias, return_lse=True), one.truth(None, one.bias))


def rounded(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    step = (step / 127).clamp(min=1e-30)
    return (x / step).round() * step


@pytest.mark.parametrize("tile", [ONE, TWO], ids=str)
def test_int8_products_are_those_of_rounded_queries_and_keys(tile, case, assert_near):
    """Truth: the reference on rounded numbers, with what the keys' mean adds to a row as one more dimension."""
    one = case(301, "after")
    q, k, v = (x.double() for x in one.qkv)
    k = k + 3 * torch.randn(H, 16, generator=torch.Generator().manual_seed(0)).double()  # what the middle takes away
    middle = k.mean(1, keepdim=True)
    inner, added = rounded(q, q.abs().amax(-1, keepdim=True)), (q * middle).sum(-1, keepdim=True)
    keys = k - middle
    for block in one.blocks:
        keys[:, block] = rounded(keys[:, block], keys[:, block].abs().amax((1, 3), keepdim=True))
    one.qkv = [torch.cat((inner, added, 0 * q[..., :7]), -1), torch.cat((keys, 0 * q[..., :8] + 1), -1),
               torch.cat((v, 0 * v[..., :8]), -1)]  # fmt: skip
    want, lse = one.truth(None, one.bias, 0.25)
    got = attend(tile, *(x.float() for x in (q, k, v)), one.plan, key_bias=one.bias, int8=True, scale=0.25,
                 return_lse=True)  # fmt: skip
    assert_near(got, (want[..., :16], lse), 2e-4)  # a number halfway between two steps may be rounded to either


@pytest.mark.parametrize("tail", TAILS)
def test_int8_products_are_near_the_exact_ones(tail, case):
    one = case(300, "before", dim=64)
    exact, lse = one.truth(tail, one.bias)
    got, found = attend(ONE, *one.qkv, one.plan, key_bias=one.bias, tail=tail, int8=True, return_lse=True)
    live = lse.isfinite()
    assert (got - exact)[live].norm() / exact[live].norm() < 0.01
    assert (found - lse)[live].abs().max() < 0.02 and torch.equal(found.isfinite(), live)


def test_strides_of_a_fused_projection(case, assert_near):
    one = case(130)
    fused = torch.stack(one.qkv, 2)  # B N 3 H D
    got = attend(ONE, *fused.unbind(2), one.plan, tail="row", return_lse=True)
    assert_near(got, one.truth("row"))
