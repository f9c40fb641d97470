"""The Triton backend around its kernels: refusals, launches, waiting. The kernels: test_in_interpreter.py."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from interspatial import kernels
from interspatial.kernels import triton_attend
from interspatial.kernels.attend_call import AttendCall, Reshape
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.triton_tiles import Device

B, H = 2, 2
AMPERE = Device("mma", 166912)


def to_meta(call: AttendCall) -> AttendCall:
    plan = call.plan
    tables = (getattr(plan, name).to("meta") for name in ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts"))
    tensors = {name: getattr(call, name).to("meta") for name in ("q", "k", "v")}
    return replace(call, **tensors, plan=BlockPlan(*tables, plan.full), key_bias=call.key_bias.to("meta"))


def test_a_cpu_is_refused_without_importing_triton(case, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_attend, "_kernels", lambda: pytest.fail("it looked for Triton"))
    one = case(129, dim=64)
    assert "TRITON_INTERPRET=1" in triton_attend.why_not(AttendCall(*one.qkv, one.plan, 1.0))
    call = to_meta(AttendCall(*one.qkv, one.plan, 1.0, one.bias))
    assert "the tensors are on meta" in triton_attend.why_not(call)


def test_head_dims_that_do_not_fit(case, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for dim in (12, 264):
        one = case(5, dim=dim)
        reason = triton_attend.why_not(AttendCall(*one.qkv, one.plan, 1.0))
        assert reason == f"the head dim is {dim}; it takes multiples of 8 up to 256"


def test_without_triton_there_is_a_reason(case, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)  # as `import triton` finds it where it is not installed
    monkeypatch.delitem(sys.modules, "interspatial.kernels.triton_attend_kernel", raising=False)
    monkeypatch.delattr(kernels, "triton_attend_kernel", raising=False)
    monkeypatch.setattr(triton_attend, "_kernels", triton_attend._kernels.__wrapped__)
    one = case(5, dim=64)
    call = AttendCall(*one.qkv, one.plan, 1.0)
    reason = triton_attend.why_not(call)
    assert reason.startswith("Triton cannot be used: ModuleNotFoundError: ") and "triton" in reason
    with pytest.raises(RuntimeError, match="cannot run in Triton: ModuleNotFoundError"):
        triton_attend.attend(call)


@pytest.mark.parametrize("tail", [None, "row", "block"])
def test_a_device_is_never_waited_for(tail, case, launches):
    """On the meta device every read of a value raises."""
    one = case(300, "before")
    call = to_meta(AttendCall(*one.qkv, one.plan, 0.1, one.bias, tail, return_lse=True))
    if tail is None:
        call = replace(call, reshape=Reshape(torch.empty(B, 300, H, device="meta"), torch.empty_like(call.q)))
    assert launches(call, AMPERE)
    out, lse = triton_attend.attend(call)
    assert out.shape == call.q.shape and lse.shape == call.q.shape[:3] and out.device.type == "meta"


@pytest.mark.parametrize("tail", [None, "row", "block"])
def test_full_runs_are_launched_apart_and_know_no_tail(tail, case, launches):
    one = case(300, "before", dtype=torch.bfloat16)
    plan = one.plan
    plan.counts.clamp_(min=0)  # those of full blocks are junk
    count = len(one.blocks)
    for full, runs in (
        ((), [(0, count, False)]),
        (((0, 1), (3, 5)), [(1, 3, False), (5, count, False), (0, 1, True), (3, 5, True)]),
        (((0, count),), [(0, count, True)]),
    ):
        made = launches(AttendCall(*one.qkv, replace(plan, full=full), 0.1, tail=tail), AMPERE)
        made = [launch for launch in made if launch.kernel.__name__ == "attend_kernel"]
        given = [launch.arguments for launch in made]
        assert [(x["first"], x["first"] + x["blocks"], x["FULL"]) for x in given] == runs
        assert [launch.grid for launch in made] == [(B * H * x["blocks"],) for x in given]
        assert all(x["TAIL"] == ("none" if x["FULL"] or tail is None else tail) for x in given)
