"""block_mass and its reference against a float64 loop, and against what the masses must sum to."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_mass import BACKENDS, block_mass, block_mass_reference
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask
from interspatial.kernels.mass_call import MassCall

pytestmark = pytest.mark.usefixtures("poisoned")

B, H = 2, 2
DTYPES = torch.float32, torch.bfloat16, torch.float16
WAYS = (block_mass_reference, partial(block_mass, backend="gather"))
CASES = [
    (tokens, text, bias, rows)
    for tokens in (1, 63, 64, 65, 129, 1000)
    for text in ("absent", "before", "after")
    for bias in ("plain", "biased")
    for rows in (None, 7)
    if tokens < 1000 or text == "after"
]


@pytest.mark.parametrize(("tokens", "text", "bias", "rows"), CASES)
def test_both_ways_match_a_float64_loop(tokens, text, bias, rows, case, assert_near):
    one = case(tokens, text, "none")
    key_bias = one.bias if bias == "biased" else None
    lse = torch.randn(B, tokens, H, generator=torch.Generator().manual_seed(2)) + 3
    lse[0, 0] = -torch.inf  # a row that saw nothing
    want = one.masses(lse, key_bias, rows, 0.2)
    for mass in WAYS:
        got = mass(*one.qkv[:2], lse, one.plan, key_bias=key_bias, rows=rows, scale=0.2)
        assert got.dtype == torch.float32
        assert_near([got], [want])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 96, 256])
def test_masses_sum_to_the_live_rows(dim, dtype, case):
    """To 1e-5 for half precision inputs too."""
    one = case(300, "before", "all", dim=dim, dtype=dtype)
    for bias in (None, one.bias):
        lse = one.truth(bias=bias)[1].float()
        for mass in WAYS:
            for rows in (None, 5):
                total = mass(*one.qkv[:2], lse, one.plan, key_bias=bias, rows=rows).sum(-1)
                torch.testing.assert_close(total, one.plan.q_live.expand(B * H, -1).float(), atol=0, rtol=1e-5)


def test_the_lse_of_block_attend_fits(case):
    """With the lse of a sparse call, the kept blocks' masses sum to the live rows, and the others are more."""
    one = case(300)
    one.keep[:, range(len(one.blocks)), range(len(one.blocks))] = True
    _, lse = block_attend(*one.qkv, one.plan, return_lse=True, backend="gather")
    mass = block_mass(*one.qkv[:2], lse, one.plan, backend="gather")
    kept = kept_mask(one.plan)
    live = one.plan.q_live.expand(B * H, -1).float()
    torch.testing.assert_close((mass * kept).sum(-1), live, atol=0, rtol=1e-5)
    assert (mass.sum(-1) > live).any()


def test_every_head_may_have_its_own_geometry(case, slot_table, assert_near):
    cases = [case(200, size=40, seed=seed) for seed in range(20)]
    cases = [one for one in cases if len(one.blocks) == len(cases[0].blocks)][: B * H]
    slots, live = (torch.cat(x) for x in zip(*(slot_table(one.blocks, width=40) for one in cases), strict=True))
    plan = BlockPlan(slots, slots, live, live, torch.zeros(1, slots.shape[1], 0, dtype=torch.int32))
    bias, lse = cases[0].bias, torch.ones(B, 200, H)
    for one in cases:
        one.qkv = cases[0].qkv
    for rows in (None, 3):
        want = torch.stack([one.masses(lse, bias, rows)[g] for g, one in enumerate(cases)])
        for mass in WAYS:
            assert_near([mass(*cases[0].qkv[:2], lse, plan, key_bias=bias, rows=rows)], [want])


def test_queries_may_be_fewer_than_keys_and_blocks_empty(case, slot_table, assert_near):
    one = case(150)
    q, k, _ = one.qkv
    here = torch.tensor(one.blocks[1])
    slots, live = slot_table([*one.blocks, []])
    own, own_live = slot_table([list(range(len(here))), []])
    plan = BlockPlan(own, slots, own_live, live, *kept_lists(one.keep[:, :2, :1]))
    lse = torch.zeros(B, 150, H)
    for rows in (None, 4):
        want = torch.zeros(B * H, 2, len(one.blocks) + 1).double()
        want[:, 0, :-1] = one.masses(lse, None, rows)[:, 1]
        for mass in WAYS:
            assert_near([mass(q[:, here], k, lse[:, here], plan, rows=rows)], [want])


def test_a_bound_on_memory_changes_no_result(case):
    one = case(500, "before")
    lse = torch.zeros(B, 500, H)
    want = block_mass(*one.qkv[:2], lse, one.plan, key_bias=one.bias, backend="gather")
    for max_bytes in (1, 1 << 16, 1 << 18):
        got = block_mass(*one.qkv[:2], lse, one.plan, key_bias=one.bias, max_bytes=max_bytes, backend="gather")
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_a_device_is_never_waited_for(case):
    """On the meta device every read of a value raises."""
    one = case(300, "before")
    tables = ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts")
    plan = BlockPlan(*(getattr(one.plan, name).to("meta") for name in tables))
    q, k, lse, bias = (x.to("meta") for x in (*one.qkv[:2], torch.zeros(B, 300, H), one.bias))
    got = block_mass(q, k, lse, plan, key_bias=bias, rows=8)
    assert got.shape == (B * H, len(one.blocks), len(one.blocks)) and got.device.type == "meta"


def test_refusals_name_what_came(case):
    one = case(129)
    (q, k, _), plan, lse = one.qkv, one.plan, torch.zeros(B, 129, H)

    def why_not(*args, **options) -> str | None:
        return MassCall(*args, scale=0.1, **options).why_not()

    assert why_not(q, k, lse, plan, key_bias=one.bias, rows=1) is None
    cases = [
        (why_not(q, k.half(), lse, plan), "float16"),
        (why_not(q, k, lse[:1], plan), "[1, 129, 2]; it must be float32 [2, 129, 2]"),
        (why_not(q, k, lse.double(), plan), "float64"),
        (why_not(q, k, lse.to("meta"), plan), "the lse is on meta and q on cpu"),
        (why_not(q, k, lse, plan, key_bias=one.bias[0]), "[129]"),
        (why_not(q, k, lse, plan, rows=0), "0 rows"),
    ]
    for reason, word in cases:
        assert word in reason
    with pytest.raises(ValueError, match="Block mass cannot take this call: 0 rows"):
        block_mass(q, k, lse, plan, rows=0)
    assert BACKENDS.backends[-1].name == "gather"
