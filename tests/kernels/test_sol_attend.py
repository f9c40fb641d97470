"""What comfy_kitchen's sol_attn is given and when it is not asked; its result, by a stand-in of the same signature."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels import sol_attend as module
from interspatial.kernels.sol_attend import sol_attend, why_not

pytestmark = pytest.mark.usefixtures("poisoned")

B, H, D = 2, 2, 128


class Kitchen:
    """Records each call; attends densely over the live keys of every 64, with the key bias."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def sol_attn_is_available(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def sol_attn(self, q, k, v, tau=1.0, scale=None, sink_blocks=None, sink_q=None, key_bias=None, topk_ratio=0.0,
                 tail=True, block_len=None, coarse_gate=None, token_aug=0):  # fmt: skip
        assert topk_ratio == 0 and coarse_gate is None and token_aug == 0
        self.calls.append(
            {"dtype": q.dtype, "tau": tau, "sinks": (sink_blocks, sink_q), "tail": tail, "len": block_len}
        )
        dead = (torch.arange(64) >= block_len[:, None]).flatten()
        for x in (q, k, v):
            assert x.shape == (B, len(block_len) * 64, x.shape[2], D) and (x[:, dead] == 0).all()
        score = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * (D**-0.5 if scale is None else scale)
        if key_bias is not None:
            score += key_bias[:, None, None]
        out = torch.einsum("bhnm,bmhd->bnhd", score.masked_fill(dead, -torch.inf).softmax(-1), v.double())
        return out.masked_fill(dead[:, None, None], torch.nan).to(q.dtype)  # dead rows are unspecified


@pytest.fixture
def kitchen(monkeypatch) -> Kitchen:
    fake = Kitchen()
    monkeypatch.setattr(module, "kitchen", lambda: (fake, ""))
    return fake


@pytest.mark.parametrize("text", ["absent", "before", "after"])
def test_tokens_go_in_by_block_and_come_back_in_order(text, kitchen, case, assert_near):
    one = case(300, text, "all", dim=D, dtype=torch.bfloat16)
    plan = one.plan
    bias = one.bias if text == "before" else None
    for max_bytes, calls in ((1, H), (1 << 30, 1)):
        kitchen.calls.clear()
        out = sol_attend(
            *one.qkv, plan.k_slots, plan.k_live, tau=1.3, scale=0.1, sinks=plan.full, key_bias=bias, max_bytes=max_bytes
        )
        assert out.shape == one.qkv[0].shape and out.dtype == torch.bfloat16
        assert_near([out], one.truth(bias=bias, scale=0.1)[:1], 1e-2)
        assert len(kitchen.calls) == calls


def test_the_rule_is_handed_over(kitchen, case):
    one = case(200, "after", dim=D, dtype=torch.float16)
    plan = one.plan
    for tail in ("block", None):
        sol_attend(*one.qkv, plan.k_slots, plan.k_live, tau=0.7, sinks=plan.full, tail=tail)
    run = list(plan.full[0])
    for call, tail in zip(kitchen.calls, (True, False), strict=True):
        assert call["tau"] == 0.7 and call["sinks"] == (run, run) and call["tail"] is tail
        assert torch.equal(call["len"], plan.k_live[0]) and call["dtype"] == torch.float16
    sol_attend(*one.qkv, plan.k_slots, plan.k_live, tau=0.7)
    assert kitchen.calls[-1]["sinks"] == ([0, 0], [0, 0])


def test_refusals(kitchen, case, monkeypatch):
    one = case(200, "after", dim=D, dtype=torch.bfloat16)
    (q, k, v), slots, bias = one.qkv, one.plan.k_slots, one.bias
    assert why_not(q, k, v, slots, sinks=one.plan.full) is None
    assert why_not(q, k, v, slots, tail=None, key_bias=bias, sinks_hold_bias=True) is None
    cases = [
        (why_not(q, k[:, 1:], v, slots), "one shape"),
        (why_not(q, k.half(), v, slots), "one dtype"),
        (why_not(*(x.float() for x in one.qkv), slots), "float32 with 128"),
        (why_not(*(x[..., :64] for x in one.qkv), slots), "bfloat16 with 64"),
        (why_not(*(x.to("meta") for x in one.qkv), slots), "no compiled sol_attn for meta"),
        (why_not(q, k, v, slots.repeat(4, 1, 1)), "the same for all heads"),
        (why_not(q, k, v, torch.zeros(1, 2, 100, dtype=torch.int32)), "at most 64 tokens"),
        (why_not(q, k, v, slots, sinks=((0, 1), (4, 5))), "both sides of the video"),
        (why_not(q, k, v, slots, tail="row"), "no 'row' tail"),
        (why_not(q, k, v, slots, key_bias=bias), "key bias in sink blocks only"),
    ]
    for reason, words in cases:
        assert words in reason
    assert not kitchen.calls


@pytest.mark.parametrize(
    ("installed", "words"), [(None, "cannot be imported"), (SimpleNamespace(), "has no sol_attn")], ids=["none", "old"]
)
def test_a_kitchen_without_it(installed, words, monkeypatch, case):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", installed)
    module.kitchen.cache_clear()
    try:
        one = case(64, dim=D, dtype=torch.bfloat16)
        assert words in why_not(*one.qkv, one.plan.k_slots)
    finally:
        module.kitchen.cache_clear()
