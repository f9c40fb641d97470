"""How block_attend treats its caller: workspace, strides, devices, refusals."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import gather_attend, kept_rows
from interspatial.kernels.attend_call import AttendCall, Reshape
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.head_rows import head_rows
from torch.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.usefixtures("poisoned")

B, H = 2, 2
TAILS = (None, "row", "block")


@pytest.mark.parametrize("tail", TAILS)
def test_workspace_bound_changes_memory_not_results(tail, monkeypatch, case):
    monkeypatch.setattr(gather_attend, "suits_order", lambda q: False)
    one = case(1000, "after", dim=64)
    want = block_attend(*one.qkv, one.plan, tail=tail, return_lse=True)
    seen = []

    def watch(q, k, v, attn_mask, scale):
        seen.append((q.shape[1], k.nbytes + v.nbytes))
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(kept_rows, "scaled_dot_product_attention", watch)
    empty = int((one.keep.sum(-1) == 0).sum()) if tail is None else 0
    for max_bytes in (1, 1 << 21, 1 << 30):
        seen.clear()
        got = block_attend(*one.qkv, one.plan, tail=tail, return_lse=True, max_bytes=max_bytes)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)
        assert all(rows == 1 or size <= max_bytes // 2 for rows, size in seen)
        assert sum(rows for rows, _ in seen) == B * H * (len(one.blocks) - 1) - empty
        assert max_bytes > 1 or all(rows == 1 for rows, _ in seen)


@pytest.mark.parametrize("stored", ["B H N D", "fused", "wide rows"])
def test_strides_are_read_in_place(stored, case):
    one = case(200, "before")
    q, k, v = one.qkv
    want = block_attend(q, k, v, one.plan, tail="row")
    if stored == "B H N D":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    elif stored == "fused":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    else:  # rows of D + 1 numbers: not a table of rows, so this one is copied
        k = torch.cat((k, k[..., :1]), -1)[..., :-1]
    assert (head_rows(k).table.data_ptr() == k.data_ptr()) == (stored != "wide rows")
    assert torch.equal(block_attend(q, k, v, one.plan, tail="row"), want)


@pytest.mark.parametrize("tail", TAILS)
def test_a_device_is_never_waited_for(tail, case):
    """On the meta device every read of a value raises."""
    one = case(300, "before")
    plan = one.plan
    tables = (getattr(plan, name).to("meta") for name in ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts"))
    there = BlockPlan(*tables, plan.full)
    q, k, v = (x.to("meta") for x in one.qkv)
    out, lse = block_attend(q, k, v, there, key_bias=one.bias.to("meta"), tail=tail, return_lse=True)
    assert out.shape == q.shape and lse.shape == q.shape[:3] and out.device.type == "meta"


def test_refusals_name_what_came(case):
    one = case(129, dim=64)
    plan, (q, k, v) = one.plan, one.qkv
    rho = Reshape(torch.ones(B, 129, H), torch.zeros(B, 129, H, 64))

    def why_not(*args, **options) -> str | None:
        return AttendCall(*args, scale=0.1, **options).why_not()

    assert why_not(q, k, v, plan, key_bias=torch.zeros(B, 129), tail="row") is None
    assert why_not(q, k, v, plan, reshape=rho) is None
    cases = [
        (why_not(q, k, v.half(), plan), "float16"),
        (why_not(q.double(), k.double(), v.double(), plan), "float64"),
        (why_not(q, k[:, :, :1], v[:, :, :1], plan), "[2, 129, 1, 64]"),
        (why_not(q, k.to("meta"), v, plan), "meta"),
        (why_not(q[:1], k[:1], v[:1], plan), "serve 4 heads; the call has 2"),
        (why_not(*(x.repeat(1, 16, 1, 1) for x in one.qkv), plan), "slots for 2064 tokens"),
        (why_not(q, k, v, plan, key_bias=torch.zeros(129)), "[129]"),
        (why_not(q, k, v, plan, tail="rows"), "'rows'"),
        (why_not(q, k, v, plan, tail="row", reshape=rho), "give one of them"),
        (why_not(q, k, v, plan, reshape=Reshape(rho.rho[..., None])), "[2, 129, 2, 1]"),
        (why_not(q, k, v, plan, reshape=Reshape(rho.rho, rho.residual[:1])), "[1, 129, 2, 64]"),
        (why_not(q.clone().requires_grad_(), k, v, plan), "gradients"),
    ]
    for reason, word in cases:
        assert word in reason
    with pytest.raises(ValueError, match="cannot take this call: the tail is 'rows'"):
        block_attend(q, k, v, plan, tail="rows")
