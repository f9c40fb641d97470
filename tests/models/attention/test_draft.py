"""DraftAttention: both rankings, the neighbours and the Jensen term against loops, and what every method must do."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from interspatial.kernels import kept_rows
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import kept_mask
from interspatial.kernels.pool_blocks import pool_blocks
from interspatial.models.attention import SparseAttention, When
from interspatial.models.attention import job as job_module
from interspatial.models.attention import pooled as selection
from interspatial.models.attention.draft import QUERY_BLOCKS, RANKINGS, Draft
from interspatial.models.attention.extents import extents
from interspatial.models.attention.job import Job
from interspatial.models.attention.orders import tile
from interspatial.models.attention.pooled import Pooled
from interspatial.models.attention.select import best_pairs, top_of_heads
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import (
    CUBES,
    MIXED,
    TILES,
    call_of,
    check_branches_are_apart,
    check_density,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    check_through_the_sampler,
    own_blocks,
    video_part,
)

pytestmark = pytest.mark.usefixtures("poisoned")

SETTINGS = (
    {"query_blocks": "double"},
    {"ranking": "whole head", "query_blocks": "double", "neighbours": True},
    {"ranking": "whole head"},
    {"ranking": "each query block", "proxy": "jensen", "neighbours": True},
    {"ranking": "whole head", "proxy": "jensen", "neighbours": True},
)
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))


def blocks_of(job: Job) -> list[torch.Tensor]:
    return [row[row >= 0].long() for row in job.order.slots[0]]


def mean_logits(job: Job, jensen: bool = False) -> torch.Tensor:
    """Scores of all block pairs by loops in float64: [B * H, K, K]."""
    call, blocks = job.call, blocks_of(job)
    batch, _, heads, dim = call.q.shape
    out = torch.zeros(batch * heads, len(blocks), len(blocks)).double()
    for g in range(batch * heads):
        q, k = (x[g // heads, :, g % heads].double() for x in (call.q, call.k))
        for i, rows in enumerate(blocks):
            for j, cols in enumerate(blocks):
                out[g, i, j] = q[rows].mean(0) @ k[cols].mean(0) * dim**-0.5
                if jensen:
                    square = q[rows].square().mean(0) @ k[cols].square().mean(0)
                    out[g, i, j] += (square - q[rows].mean(0).square() @ k[cols].mean(0).square()) / dim / 2
    return out


@each_setting
def test_everything_kept_is_dense(settings):
    check_everything_kept_is_dense(Draft(**settings))


@pytest.mark.parametrize("density", [0.001, 0.1, 0.37])
@each_setting
def test_the_stated_density(settings, density):
    check_density(Draft(**settings), density)


@each_setting
def test_other_rows_are_exact(settings):
    check_other_rows_are_exact(Draft(**settings), 0.2)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_branches_are_apart(ranking):
    check_branches_are_apart(Draft(ranking=ranking, proxy="jensen", neighbours=True), 0.3)


@pytest.mark.parametrize("jensen", [False, True])
def test_a_whole_head_keeps_its_best_pairs(jensen):
    job = Job(call_of(arrange([("text", 5), ("video", (2, 9, 10))]), batch=1), TILES, "row", 0.3)
    method = Draft(ranking="whole head", proxy="jensen" if jensen else "mean")
    part = video_part(method.plan(job), job)
    share = mean_logits(job, jensen).softmax(-1)[:, slice(*job.order.video), slice(*job.order.video)]
    own = torch.eye(part.shape[1], dtype=torch.bool)
    for g in range(len(part)):
        assert share[g][part[g] & ~own].min() >= share[g][~part[g]].max() - 1e-7
    assert part.sum(2).unique().numel() > 2, "query blocks that need more get more"


def test_equal_pairs_at_the_edge_are_taken_in_order():
    score = torch.tensor([[[1.0, 0.5], [0.5, 0.5]], [[-torch.inf, 0.0], [-torch.inf, -torch.inf]]])
    assert best_pairs(score, 2).tolist() == [[[True, True], [False, False]], [[True, True], [False, False]]]
    assert best_pairs(score, 4).all()
    half = torch.zeros(3, 7, 7)
    assert torch.equal(best_pairs(half, 30).flatten(1), (torch.arange(49) < 30).expand(3, -1))


def test_the_jensen_term_is_half_the_variance():
    """Equal queries s, keys at the mean +- a on one axis: the log of the mean adds log cosh(s a), about (s a)^2 / 2."""
    layout = arrange([("video", (2, 4, 4))])
    order = tile(layout, 4)
    q, k = torch.zeros(1, 32, 1, 16), torch.zeros(1, 32, 1, 16)
    q[..., 3], k[..., 3] = 0.4, 1.0
    k[:, ::2, :, 3] += 0.5
    k[:, 1::2, :, 3] -= 0.5
    true = torch.einsum("bqhd,bkhd->qk", q, k).view(2, 16, 2, 16).exp().mean((1, 3)).log()
    plain, better = (Pooled.of(q, k, order, scale=1.0, jensen=on).logits(slice(None))[0] for on in (False, True))
    assert math.isclose(float(plain[0, 0]), 0.4, rel_tol=1e-6)
    assert math.isclose(float(better[0, 0]), 0.4 + 0.2**2 / 2, rel_tol=1e-6)
    assert (better - true).abs().max() < 0.01 * (plain - true).abs().max()


def test_the_jensen_term_finds_a_peak_that_the_mean_hides():
    call = call_of(MIXED, batch=1)
    job = Job(call, TILES, "row", 0.1)
    peak = blocks_of(job)[job.order.video[0] + 7]
    call.k[:, peak] *= 8  # no larger mean to speak of, and keys that some query always points at
    others = torch.arange(60) != 7
    chosen = [video_part(Draft(proxy=proxy).plan(Job(call, TILES, "row", 0.1)), job) for proxy in ("mean", "jensen")]
    assert chosen[1][:, others, 7].all() and not chosen[0][:, others, 7].all()


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("query_blocks", QUERY_BLOCKS)
@pytest.mark.parametrize("blocks", [TILES, CUBES], ids=["tile", "cube"])
def test_neighbours_come_first_in_the_budget(ranking, query_blocks, blocks):
    job = Job(call_of(MIXED), blocks, "row", 0.6)
    method = Draft(ranking=ranking, neighbours=True, query_blocks=query_blocks)
    plan = method.plan(job)
    near = (own_blocks(plan, job).float() @ extents(job.order, MIXED).neighbours().float()) > 0
    assert video_part(plan, job)[:, near].all()
    assert not video_part(replace(method, neighbours=False).plan(job), job)[:, near].all()
    tight = Job(job.call, blocks, "row", 0.06)  # 3 or 4 of 60, where a corner has 4 neighbours
    assert not (video_part(method.plan(tight), tight) & ~near).any()


def test_two_blocks_of_queries_choose_by_their_common_mean():
    """Doubled tiles of 4 x 8 over tiles of 4 x 4, against the mean query of all their tokens in float64."""
    job = Job(call_of(arrange([("video", (2, 8, 16))]), batch=1), TILES, "row", 0.5)
    plan = Draft(query_blocks="double").plan(job)
    part, own = video_part(plan, job), own_blocks(plan, job)
    assert plan.q_slots.shape[1:] == (8, 32) and own.sum(1).tolist() == [2] * 8
    for g in range(len(part)):
        q, k = (x[0, :, g].double() for x in (job.call.q, job.call.k))
        for i, rows in enumerate(plan.q_slots[0].long()):
            score = torch.stack([q[rows].mean(0) @ k[cols].mean(0) for cols in blocks_of(job)])
            others = score.masked_fill(own[i], -torch.inf).argsort(descending=True)[:6]
            assert {*part[g, i].nonzero()[:, 0].tolist()} == {*others.tolist(), *own[i].nonzero()[:, 0].tolist()}


def test_neighbours_touch_in_one_frame():
    """3 x 4 tiles a frame: a corner has 4 with itself, an edge 6, an inner tile 9."""
    job = Job(call_of(MIXED), TILES)
    near = extents(job.order, MIXED).neighbours()
    assert near.sum(1).view(5, 3, 4)[2].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]
    assert torch.equal(near, near.T)


def test_ranking_a_head_waits_for_no_device():
    """On the meta device every read of a value raises."""
    q, k = (torch.zeros(2, MIXED.tokens, 3, 8, device="meta") for _ in "qk")
    order = tile(MIXED, 4).to("meta")
    bias = torch.zeros(2, MIXED.tokens, device="meta")
    plan = top_of_heads(Pooled.of(q, k, order, key_bias=bias, jensen=True), order, 0.3)
    assert plan.cols.device.type == "meta"


def test_what_was_pooled_serves_all_plans_of_a_call():
    memo: dict = {}
    call = call_of(MIXED)
    first = Draft().plan(Job(call, TILES, "row", 0.2, memo))
    call.q.zero_()  # the plan of another density does not look again
    more = Draft().plan(Job(call, TILES, "row", 0.4, memo))
    assert (kept_mask(more) | ~kept_mask(first)).all()


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_through_the_sampler(comfy):
    check_through_the_sampler(Draft(0.3, ranking="whole head", proxy="jensen", neighbours=True))


@pytest.mark.parametrize("tail", ["row", "block"])
def test_a_tail_takes_the_means_that_selection_has_made(tail, monkeypatch):
    """The same output, from one pooling of the keys less."""
    bias = torch.zeros(2, MIXED.tokens)
    bias[0, 50:90], bias[1, ::3] = -torch.inf, -1.25
    call = call_of(MIXED, bias=bias)
    read = []
    for module in (selection, kept_rows):
        monkeypatch.setattr(module, "pool_blocks", lambda x, *rest: read.append(x) or pool_blocks(x, *rest))
    out = Draft().attend(Job(call, TILES, tail, 0.3))
    assert sum(x is call.k for x in read) == 1
    monkeypatch.setattr(Job, "_key_means", lambda self, plan: None)
    assert torch.equal(out, Draft().attend(Job(call, TILES, tail, 0.3)))
    assert sum(x is call.k for x in read) == 3


def test_int8_products_are_allowed_by_the_setting(monkeypatch):
    """From the patch through the job to the kernel's call."""
    asked = []

    def attend(*tensors, int8, **rest):
        asked.append(int8)
        return block_attend(*tensors, **rest)

    monkeypatch.setattr(job_module, "block_attend", attend)
    for int8 in (False, True):
        SparseAttention(Draft(density=0.3), When(), TILES, int8=int8).attend(call_of(MIXED))
    assert asked == [False, True]
