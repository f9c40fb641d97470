"""Sol-Attn: its published densities, scores against float64, forced neighbours, and what every method must do."""

from __future__ import annotations

import os

import pytest
import torch
from interspatial.kernels import sol_attend
from interspatial.kernels.block_plan import kept_mask
from interspatial.models.attention.job import Job
from interspatial.models.attention.pooled import Pooled
from interspatial.models.attention.threshold import Threshold, standard_scores
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import (
    MIXED,
    TILES,
    call_of,
    check_branches_are_apart,
    check_density,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    check_through_the_sampler,
    video_part,
)

pytestmark = pytest.mark.usefixtures("poisoned")


def pooled(query, key, log_weight=None) -> Pooled:
    """query, key: [G, V, D]"""
    log_weight = torch.zeros(key.shape[:2]) if log_weight is None else log_weight
    return Pooled(query, key, log_weight, query.shape[-1] ** -0.5, (0, query.shape[1]))


@pytest.mark.parametrize(("tau", "share"), [(1.0, 0.158), (1.5, 0.067), (2.0, 0.023)])
def test_the_published_densities(tau, share):
    """400 blocks of independent normal numbers, D 64: 1 - Phi(tau) of them score above tau."""
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(4, 400, 64, generator=draw) for _ in "qk")
    found = float((standard_scores(pooled(query, key), slice(None)) > tau).float().mean())
    assert abs(found - share) < 0.003


def test_scores_against_loops():
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 30, 16, generator=draw) + 2 for _ in "qk")
    log_weight = torch.zeros(2, 30)
    log_weight[0, 5:8], log_weight[1, 3] = -torch.inf, -1.5
    score = standard_scores(pooled(query, key, log_weight), slice(None))
    for g in range(2):
        alive = log_weight[g] > -torch.inf
        centred = key[g].double() - key[g][alive].double().mean(0)
        variance = centred[alive].square().mean(0)
        for i in range(30):
            spread = (query[g, i].double().square() @ variance / 16).sqrt()
            want = (centred @ query[g, i].double() / 4 + log_weight[g].double()) / spread
            torch.testing.assert_close(score[g, i, alive].double(), want[alive], atol=1e-4, rtol=1e-4)
        assert (score[g][:, ~alive] == -torch.inf).all()


def test_no_block_stands_out_among_equal_keys():
    call = call_of(MIXED)
    call.k[:] = call.k[:, :1]
    job = Job(call, TILES)
    video = job.order.video[1] - job.order.video[0]
    assert video_part(Threshold(tau=0.5).plan(job), job).sum((1, 2)).tolist() == [3 * video - 2] * 6


@pytest.mark.parametrize("tau", [0.5, 1.3])
def test_keeps_what_stands_out_and_the_neighbours(tau):
    job = Job(call_of(MIXED), TILES)
    part = video_part(Threshold(tau=tau).plan(job), job)
    call, first = job.call, job.order.video[0]
    score = standard_scores(Pooled.of(call.q, call.k, job.order), slice(None))
    place = torch.arange(60)
    near = (place[:, None] - place).abs() <= 1
    assert torch.equal(part, (score > tau) | near)
    assert part.sum(2).unique().numel() > 2
    assert kept_mask(Threshold(tau=tau).plan(job))[:, first:, :first].all()


def test_removed_blocks_are_not_kept_and_do_not_widen_the_spread():
    layout = arrange([("video", (5, 8, 8))])
    call = call_of(layout)
    job = Job(call, TILES)
    gone = job.order.slots[0, 7].long()
    bias = torch.zeros(2, layout.tokens)
    bias[:, gone] = -torch.inf
    call.k[:, gone] *= 100
    job = Job(call_of(layout, bias=bias), TILES)
    job.call.k[:, gone] *= 100
    far = (torch.arange(20) - 7).abs() > 1
    part = video_part(Threshold(tau=1.0).plan(job), job)
    assert not part[:, far, 7].any()
    assert 0.1 < part[:, :, torch.arange(20) != 7].float().mean() < 0.4  # 16 % and the neighbours


def test_everything_kept_is_dense():
    check_everything_kept_is_dense(Threshold())


@pytest.mark.parametrize("density", [0.001, 0.1, 0.37])
def test_the_stated_density(density):
    check_density(Threshold(), density)


def test_a_density_is_one_threshold_for_the_head():
    job = Job(call_of(MIXED), TILES, "row", 0.3)
    part = video_part(Threshold().plan(job), job)
    score = standard_scores(Pooled.of(job.call.q, job.call.k, job.order), slice(None))
    place = torch.arange(60)
    far = (place[:, None] - place).abs() > 1
    assert part[:, ~far].all()
    for g in range(6):
        assert score[g][part[g] & far].min() >= score[g][~part[g]].max()


def test_other_rows_are_exact():
    check_other_rows_are_exact(Threshold(), None)


@pytest.mark.parametrize("density", [None, 0.3])
def test_branches_are_apart(density):
    check_branches_are_apart(Threshold(), density)


def test_the_fused_kernel_is_asked_first_where_tau_decides(monkeypatch):
    """A stand-in for it: what it is asked, what it is given, and that its plan is still reported."""
    asked = []

    def refuses(q, k, v, slots, *, sinks, tail, key_bias):
        asked.append((sinks, tail))
        return "not row" if tail == "row" else None

    def takes(q, k, v, slots, live, *, tau, scale, sinks, tail, key_bias):
        return torch.full_like(q, tau)

    monkeypatch.setattr(sol_attend, "why_not", refuses)
    monkeypatch.setattr(sol_attend, "sol_attend", takes)
    method = Threshold(tau=1.5)
    for tail, density, fused in (("block", None, True), ("row", None, False), ("block", 0.3, False)):
        job = Job(call_of(MIXED), TILES, tail, density)
        assert bool((method.attend(job) == 1.5).all()) == fused
        assert torch.equal(job.used.cols, method.plan(job).cols)
    assert asked == [(((0, 1), (61, 63)), "block"), (((0, 1), (61, 63)), "row")]


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_through_the_sampler(comfy):
    check_through_the_sampler(Threshold())
