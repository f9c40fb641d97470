"""rho and residual: what an earlier dense call measured makes a sparse call dense again."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.attend_call import Reshape
from interspatial.kernels.block_attend import block_attend, block_attend_reference
from interspatial.kernels.block_plan import BlockPlan

pytestmark = pytest.mark.usefixtures("poisoned")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def gather(*args, **options):
    return block_attend(*args, backend="gather", **options)


def full_runs(plan: BlockPlan, full: tuple[tuple[int, int], ...]) -> BlockPlan:
    return BlockPlan(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, plan.cols, plan.counts, full)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("kept", ["none", "some"])
def test_rho_and_residual_of_the_same_call_give_dense_attention(kept, biased, dtype, case, assert_near):
    one = case(300, "before", kept, dtype=dtype)
    bias = one.bias if biased else None
    sparse, some = one.truth(bias=bias)
    plan = one.plan
    one.keep[:] = True
    dense, whole = one.truth(bias=bias)
    rho = (some - whole).exp()
    reshape = Reshape(rho.float(), (dense - rho[..., None] * sparse).to(dtype))
    for attend in (block_attend_reference, gather):
        out, lse = attend(*one.qkv, plan, key_bias=bias, reshape=reshape, return_lse=True)
        assert out.dtype == dtype
        assert_near([out], [dense], TOLERANCE[dtype])
        assert_near([lse], [some], TOLERANCE[dtype])  # of the kept keys, as without a reshape


@pytest.mark.parametrize("full", ["none", "text", "all"])
def test_every_row_is_reshaped_and_rho_is_capped(full, case):
    one = case(200, "after")
    runs = {"none": (), "text": one.plan.full, "all": ((0, len(one.blocks)),)}[full]
    plan = full_runs(one.plan, runs)
    plan.counts.clamp_(min=1)  # those of full blocks are junk
    draw = torch.Generator().manual_seed(1)
    rho = torch.rand(one.qkv[0].shape[:3], generator=draw) * 1.5
    residual = torch.randn(one.qkv[0].shape, generator=draw)
    plain = gather(*one.qkv, plan)
    want = plain * rho.clamp(max=1)[..., None]
    for attend in (block_attend_reference, gather):
        got = attend(*one.qkv, plan, reshape=Reshape(rho))
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
        got = attend(*one.qkv, plan, reshape=Reshape(rho, residual.double()))
        torch.testing.assert_close(got, want + residual, atol=1e-6, rtol=1e-5)


def test_half_precision_is_rounded_once(case):
    one = case(200, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(1)
    rho, residual = torch.rand(one.qkv[0].shape[:3], generator=draw), torch.randn(one.qkv[0].shape, generator=draw)
    plain = gather(*one.qkv, one.plan)
    for max_bytes in (1, 1 << 20):
        got = gather(*one.qkv, one.plan, reshape=Reshape(rho, residual), max_bytes=max_bytes)
        assert torch.equal(got, (plain.float() * rho[..., None] + residual).bfloat16())
