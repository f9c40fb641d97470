"""The error target: interpolation by hand, an audit against dense attention, and a closed loop on made-up attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan
from interspatial.models.attention import METHODS, Blocks, ErrorTarget, Method, SparseAttention, When
from interspatial.models.attention.error_target import LEAST, audit, interpolate
from interspatial.models.attention.select import top_blocks
from interspatial.models.call import AttentionCall
from interspatial.models.forward import Branch, Forward
from interspatial.models.layout import arrange
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from torch.nn.functional import scaled_dot_product_attention

GRID = (3, 9, 14)
DRAFT = METHODS["draft"]


class Stage:
    """Attention calls of one layer, step after step, a little sharper in later steps."""

    def __init__(self, steps: int = 8, text: int = 5) -> None:
        self.steps, self.layout = steps, arrange([("text", text), ("video", GRID)])
        self.run = Run(Schedule([1 - i / steps for i in range(steps + 1)], lambda p: 1.0 - p), Report())
        self.tally = self.run.report.tally("m", Card("sparse", "sparse"))
        draw = torch.Generator().manual_seed(0)
        place = torch.stack(torch.meshgrid(*(torch.arange(n) / n for n in GRID), indexing="ij"), -1).flatten(0, 2)
        wave = place.float() @ torch.randn(3, 32, generator=draw) * 3
        near = torch.cat((wave.sin(), wave.cos()), -1)  # 64: queries look at tokens near them
        self.near = torch.cat((torch.randn(text, 64, generator=draw), near))
        self.noise = torch.randn(3, 2, self.layout.tokens, 2, 64, generator=draw)

    def call(self, step: int, branches: int = 1) -> AttentionCall:
        self.run.begin_call(1 - step / self.steps)
        sharp = 1.0 + 0.03 * step
        q, k = (sharp * self.near[None, :, None] + 1.2 * x for x in self.noise[:2])
        v = self.noise[2] + 0.5
        names = tuple(Branch(name, i, slice(i, i + 1)) for i, name in enumerate("pn"[:branches]))
        q, k, v = (x[:branches] for x in (q, k, v))
        forward = Forward(None, self.layout, branches, names, self.run.position)

        def dense(q_, k_, v_, mask, layout):
            return truth(q, k, v)

        return AttentionCall(q, k, v, None, None, self.layout, 4, forward, self.run, "m", self.tally, dense)


def truth(q, k, v) -> torch.Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def error(out: torch.Tensor, call: AttentionCall) -> float:
    exact = truth(call.q, call.k, call.v)[:, 5:]
    apart = (out[:, 5:].double() - exact).square().sum((1, 3)) / exact.square().sum((1, 3))
    return float(apart.sqrt().mean())


def sparse(target: float, most: float = 0.9, tail: str | None = "row") -> SparseAttention:
    return SparseAttention(DRAFT(), When(), Blocks("tile", 3), tail, target=ErrorTarget(target, most))


def test_interpolates_in_the_logs():
    density, found = interpolate([0.2, 0.8], [0.4, 0.1], 0.2)
    assert math.isclose(density, 0.5) and found == 0.2, "halfway in log error, and in log odds: 1/4, 1, 4"
    assert interpolate([0.1, 0.4], [0.4, 0.3], 0.2) == (0.4, 0.3), "never above the cap"
    assert interpolate([0.1, 0.4], [0.15, 0.1], 0.2) == (0.1, 0.15)
    assert interpolate([0.1, 0.9], [0.4, 0.0], 0.2) == (0.9, 0.0)


@pytest.mark.parametrize("tail", ["row", None])
def test_an_audit_of_all_blocks_is_the_error(tail):
    call = Stage().call(2)
    method = sparse(0.1, tail=tail)
    tried = [0.1, 0.3, 1.0]
    found = audit(method, call, tried, {})  # 45 blocks of at most 9 rows: all of them are audited
    for density, got in zip(tried, found.tolist(), strict=True):
        job = method.job(call, density)
        assert math.isclose(got, error(method.method.attend(job), call), rel_tol=1e-3, abs_tol=1e-6)
    assert found[0] > found[1] > found[2]


@dataclass(frozen=True)
class TwoGeometries(Method):
    """Draft with a geometry of its own for each head, the query blocks in another order."""

    label: ClassVar[str] = "two"

    def plan(self, job) -> BlockPlan:
        call = job.call
        plan = top_blocks(call.q, call.k, job.order, job.density)
        heads, last = len(plan.cols), job.order.video[1]
        turn = torch.cat((torch.arange(1), torch.arange(1, last).flip(0)))
        return BlockPlan(
            plan.q_slots[:, turn].expand(heads, -1, -1), plan.k_slots, plan.q_live[:, turn].expand(heads, -1),
            plan.k_live, plan.cols[:, turn], None if plan.counts is None else plan.counts[:, turn], plan.full,
        )  # fmt: skip


def test_an_audit_reads_geometries_of_heads():
    call = Stage().call(2)
    plain, turned = (SparseAttention(m, When(), Blocks("tile", 3)) for m in (DRAFT(), TwoGeometries()))
    torch.testing.assert_close(audit(turned, call, [0.2], {}), audit(plain, call, [0.2], {}), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tail", ["row", None])
@pytest.mark.parametrize("target", [0.05, 0.1, 0.2])
def test_the_mean_error_of_a_run_is_the_target(target, tail):
    stage, method, found = Stage(), sparse(target, tail=tail), []
    for step in range(stage.steps):
        call = stage.call(step, branches=2)
        assert method.why_not(call) is None
        found.append(error(method.attend(call), call))
    assert 0.7 * target <= sum(found) / len(found) <= 1.3 * target
    text = stage.run.report.text()
    assert "density in % by layer: 4: " in text and "density in % by step: 0: " in text
    assert math.isclose(stage.tally.mean("error"), target, rel_tol=1e-6)


def test_the_cap_holds_and_is_reported():
    stage, method = Stage(), sparse(0.001, most=0.2)
    method.attend(stage.call(0))
    assert math.isclose(stage.tally.mean("at the density cap"), 1.0)
    assert stage.tally.details["density"][0][4] == (0.2, 1)


def test_batched_branches_get_what_each_gets_alone():
    together, method = Stage(), sparse(0.1)
    call = together.call(0, branches=2)
    out = method.attend(call)
    apart = Stage()
    both = apart.call(0, branches=2)
    for branch in both.branches:
        torch.testing.assert_close(method.attend(both.only(branch)), out[branch.rows], atol=1e-6, rtol=0)


def test_a_restart_is_audited_anew():
    stage, method = Stage(), sparse(0.1)
    first = method.target.density(stage.call(6), method, {})
    again = method.target.density(stage.call(0), method, {})
    assert first != again
    assert math.isclose(again, method.target.density(Stage().call(0), method, {}))
    assert again >= LEAST


def test_methods_with_frozen_blocks_are_refused():
    frozen = type("Frozen", (DRAFT,), {"steerable": False, "label": "Frozen"})
    with pytest.raises(ValueError, match=r"cannot steer Frozen.*Set error_target to 0"):
        SparseAttention(frozen(), target=ErrorTarget(0.1))
