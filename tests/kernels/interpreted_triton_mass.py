"""The Triton backend of block mass against a float64 loop, the reference and the gather backend.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it. A step costs milliseconds.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import triton_mass
from interspatial.kernels.block_mass import BACKENDS, block_mass, block_mass_reference
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.mass_call import MassCall

pytestmark = pytest.mark.usefixtures("poisoned", "interpreter")

B, H = 2, 2
DTYPES = torch.float32, torch.bfloat16, torch.float16
CASES = [
    (1, 64, "absent", "biased", None),
    (63, 64, "before", "plain", 7),
    (64, 64, "absent", "biased", None),
    (65, 64, "after", "plain", None),
    (129, 64, "absent", "biased", 16),
    (70, 16, "after", "biased", None),  # several blocks to a step
    (130, 100, "before", "biased", None),  # several steps to a block, and several programs
]


def mass(q, k, lse, plan, *, scale=None, key_bias=None, rows=None):
    """As `block_mass`, on this backend alone."""
    call = MassCall(q, k, lse, plan, q.shape[-1] ** -0.5 if scale is None else scale, key_bias, rows)
    assert call.why_not() is None and triton_mass.why_not(call) is None
    return triton_mass.mass(call)


def some_lse(tokens: int) -> torch.Tensor:
    lse = torch.randn(B, tokens, H, generator=torch.Generator().manual_seed(2)) + 3
    lse[0, 0] = -torch.inf  # a row that saw nothing
    return lse


@pytest.mark.parametrize(("tokens", "size", "text", "bias", "rows"), CASES)
def test_it_matches_a_float64_loop(tokens, size, text, bias, rows, case, assert_near):
    one = case(tokens, text, size=size)
    key_bias, lse = one.bias if bias == "biased" else None, some_lse(tokens)
    got = mass(*one.qkv[:2], lse, one.plan, key_bias=key_bias, rows=rows, scale=0.2)
    assert_near([got], [one.masses(lse, key_bias, rows, 0.2)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [24, 64, 96, 256])
def test_head_dims_and_dtypes_agree_with_the_other_ways(dim, dtype, case, assert_near):
    one = case(40, "before", dim=dim, dtype=dtype)
    lse = some_lse(40)
    got = mass(*one.qkv[:2], lse, one.plan, key_bias=one.bias)
    assert_near([got], [one.masses(lse, one.bias)])
    assert_near([got], [block_mass(*one.qkv[:2], lse, one.plan, key_bias=one.bias, backend="gather")])
    assert_near([got], [block_mass_reference(*one.qkv[:2], lse, one.plan, key_bias=one.bias)])


def test_it_is_the_first_choice(case):
    one = case(63)
    lse = some_lse(63)
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "gather"]
    assert torch.equal(block_mass(*one.qkv[:2], lse, one.plan), mass(*one.qkv[:2], lse, one.plan))


def test_every_head_may_have_its_own_geometry(case, slot_table, assert_near):
    cases = [case(100, size=40, seed=seed) for seed in range(20)]
    cases = [one for one in cases if len(one.blocks) == len(cases[0].blocks)][: B * H]
    slots, live = (torch.cat(x) for x in zip(*(slot_table(one.blocks, width=40) for one in cases), strict=True))
    plan = BlockPlan(slots, slots, live, live, torch.zeros(1, slots.shape[1], 0, dtype=torch.int32))
    for one in cases:
        one.qkv = cases[0].qkv
    for rows in (None, 3):
        want = torch.stack([one.masses(some_lse(100), cases[0].bias, rows)[g] for g, one in enumerate(cases)])
        assert_near([mass(*cases[0].qkv[:2], some_lse(100), plan, key_bias=cases[0].bias, rows=rows)], [want])


@pytest.mark.parametrize("stored", ["B H N D", "fused", "odd rows"])
def test_strides_do_not_matter(stored, case):
    one = case(30, "after")
    q, k, v = one.qkv
    lse = some_lse(30)
    want = mass(q, k, lse, one.plan)
    if stored == "B H N D":
        q, k, lse = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, lse))
    elif stored == "fused":
        q, k, _ = torch.stack((q, k, v), 2).unbind(2)
    else:  # rows of D + 1 numbers: their distance is not a multiple of 8
        k = torch.cat((k, k[..., :1]), -1)[..., :-1]
    assert torch.equal(mass(q, k, lse, one.plan), want)
