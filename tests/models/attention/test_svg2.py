"""Sparse VideoGen 2: its two routings by hand, a budget that is met, centroids that stay in their run and prompt."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, check_plan, kept_mask
from interspatial.kernels.pooling_error import pooling_error
from interspatial.models.attention import svg2
from interspatial.models.attention.job import Job
from interspatial.models.attention.kmeans import Pieces, cut
from interspatial.models.attention.svg2 import SVG2, Warm
from interspatial.models.attention.svg2_routing import (
    Keys,
    kept_by_mass,
    kept_by_tokens,
    rank,
    ranked,
    tokens_in,
)
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import (
    MIXED,
    call_of,
    check_branches_are_apart,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    check_through_the_sampler,
    new_run,
    truth,
)
from interspatial.tests.no_waits import no_waits

pytestmark = pytest.mark.usefixtures("poisoned")

B, H, D = 2, 3, 32
VIDEO = slice(MIXED.video.start, MIXED.video.stop)
TOKENS = len(MIXED.video)


def holes(batch: int = B) -> torch.Tensor:
    """A key bias: a run of the video gone, a third of it weighed down. [B, N]"""
    bias = torch.zeros(batch, MIXED.tokens)
    bias[0, 50:300] = -torch.inf
    bias[-1, ::3] = -1.25
    return bias


def rows_kept(plan: BlockPlan) -> torch.Tensor:
    """Video keys that each video query sees exactly: int64 [B * H, tokens of the video]."""
    keep = kept_mask(plan)
    out = torch.empty(len(keep), MIXED.tokens, dtype=torch.int64)
    for g in range(len(keep)):
        of_video = ((plan.k_slots[g] >= VIDEO.start) & (plan.k_slots[g] < VIDEO.stop)).sum(-1)
        for i, slots in enumerate(plan.q_slots[g]):
            out[g, slots[slots >= 0].long()] = int(of_video[keep[g, i]].sum())
    return out[:, VIDEO]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_published_example_of_top_p():
    score, live = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([[10, 20, 30, 40]])
    mass = (score + live.log()).softmax(-1)[None]
    torch.testing.assert_close(mass[0], torch.tensor([[0.4272, 0.3143, 0.1734, 0.0851]]), atol=5e-5, rtol=0)
    order = ranked(score[None, None], live)
    assert order.flatten().tolist() == [0, 1, 2, 3]
    assert [int(kept_by_mass(order, mass, live, p, 0)) for p in (0.4, 0.5, 0.7, 0.9, 0.95)] == [1, 2, 2, 3, 4]
    assert [int(kept_by_mass(order, mass, live, 0.0, least)) for least in (1, 10, 11, 31, 100)] == [1, 1, 2, 3, 4]


def test_a_budget_in_tokens_is_rounded_to_a_block():
    live = torch.tensor([[10, 20, 30, 0, 40]])
    order = ranked(torch.tensor([[[0.0, 3.0, -9.0, 9.0, -torch.inf]]]), live)
    assert order.flatten().tolist() == [1, 0, 2, 4, 3]  # what the bias removed behind the rest, nothing at the very end
    for budget, want in ((0, 1), (9, 1), (24, 1), (25, 2), (44, 2), (45, 3), (79, 3), (80, 4), (1000, 4)):
        assert int(kept_by_tokens(order, live, budget)) == want
        assert int(tokens_in(order, live, torch.tensor([[want]]))) == [20, 30, 60, 100][want - 1]


def keys_of(seed: int = 0, bias: torch.Tensor | None = None) -> tuple[torch.Tensor, Keys, list[torch.Tensor]]:
    """Mean queries [B * H, 5, D], pieces of 53 keys, and k and v."""
    draw = torch.Generator().manual_seed(seed)
    query, k, v = (torch.randn(s, generator=draw) for s in ((B * H, 5, D), (B, 53, H, D), (B, 53, H, D)))
    pieces = cut(torch.randint(9, (B * H, 53), generator=draw), 9, 4)
    return 2 * query, Keys.of(k, v, pieces, bias), [k, v]


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("map_bytes", [1, 1 << 26])
def test_the_error_of_pooling_is_what_its_definition_says(biased, map_bytes, monkeypatch):
    monkeypatch.setattr("interspatial.kernels.pooling_error.MAP_BYTES", map_bytes)
    bias = None
    if biased:
        bias = torch.randn(B, 53, generator=torch.Generator().manual_seed(1))
        bias[:, ::5] = -torch.inf
    query, keys, kv = keys_of(bias=bias)
    scale = D**-0.5
    for g in range(B * H):
        b, h = divmod(g, H)
        k, v = (x[b, :, h].double() for x in kv)
        weight = torch.ones(53).double() if bias is None else bias[b].double().exp()
        want = torch.zeros(5, keys.pieces.slots.shape[1]).double()
        tops = (scale * query[g].double() @ k[weight > 0].T).amax(1)
        for j, slots in enumerate(keys.pieces.slots[g]):
            held = slots[slots >= 0].long()
            w = weight[held]
            if w.sum() == 0:
                continue
            mean_k, mean_v = (w @ k[held]) / w.sum(), (w @ v[held]) / w.sum()
            for i, q in enumerate(query[g].double()):
                a, e = (scale * q @ mean_k - tops[i]).exp(), (scale * k[held] @ q - tops[i]).exp()
                want[i, j] = (w[:, None] * (a * mean_v - e[:, None] * v[held])).square().sum()
        got = pooling_error(query[g : g + 1], keys.blocks, g, scale)[0]
        torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-4)


def test_error_leaves_out_what_its_mean_replaces_and_mass_does_not():
    query, keys, (k, v) = keys_of()
    held = [slots[0][slots[0] >= 0].long() for slots in keys.pieces.slots]
    for g, block in enumerate(held):  # the first piece of every head: equal keys and values, and most of the attention
        b, h = divmod(g, H)
        k[b, block, h], v[b, block, h] = query[g].mean(0), v[b, block[:1], h]
    query += query.mean(1, keepdim=True)
    keys = Keys.of(k, v, keys.pieces, None)
    settings = {"top_p": None, "least": 0}
    by_mass = rank(query, keys, D**-0.5, by_error=False, **settings).order
    by_error = rank(query, keys, D**-0.5, by_error=True, **settings).order
    assert (by_mass[..., 0] == 0).float().mean() > 0.7
    place = (by_error == 0).float().argmax(-1)
    with_error = (keys.pieces.live > 1).sum(-1) - 1  # a piece of one token is its mean
    assert (place >= with_error[:, None]).float().mean() > 0.8  # the others: nothing but that piece counts at all


def test_the_error_routing_costs_what_top_p_does():
    query, keys, _ = keys_of()
    found = [rank(query, keys, D**-0.5, by_error=by_error, top_p=0.6, least=3) for by_error in (False, True)]
    cost = [tokens_in(one.order.long(), keys.pieces.live, one.counts) for one in found]
    assert (cost[0] >= 3).all() and cost[0].float().mean() < 40
    assert (cost[0] - cost[1]).abs().max() <= 2  # pieces of 4 tokens at most
    assert not torch.equal(found[0].order, found[1].order)


def test_chunks_of_heads_change_nothing(monkeypatch):
    query, keys, _ = keys_of()
    want = rank(query, keys, D**-0.5, by_error=True, top_p=0.6, least=3)
    monkeypatch.setattr("interspatial.models.attention.svg2_routing.MAP_BYTES", 1)
    got = rank(query, keys, D**-0.5, by_error=True, top_p=0.6, least=3)
    assert torch.equal(got.order, want.order) and torch.equal(got.counts, want.counts)


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["mass", "error"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.5])
def test_every_query_has_the_stated_density(density, routing):
    for bias in (None, holes()):
        job = Job(call_of(MIXED, bias=bias), density=density)
        plan = SVG2(routing=routing).plan(job)
        check_plan(plan, MIXED.tokens, MIXED.tokens)
        kept, budget = rows_kept(plan), density * TOKENS
        block = plan.k_slots.shape[2]
        assert kept.min() >= 1
        assert ((kept - budget).abs() <= max(block / 2, block - budget)).all()
        assert abs(kept.float().mean() / TOKENS - density) < 0.25 * block / TOKENS
        (first, last), keep = (plan.full[0][1], plan.full[1][0]), kept_mask(plan)
        for g in range(B * H):
            slots = plan.k_slots[g]
            other = ((slots >= 0) & ((slots < VIDEO.start) | (slots >= VIDEO.stop))).any(-1)
            busy = plan.q_live[g] > 0
            assert keep[g][busy][:, other].all() and int(plan.k_live[g, other].sum()) == MIXED.tokens - TOKENS
        assert plan.q_slots[:, :first].amax() < 9 and plan.q_slots[:, last:].amax() == MIXED.tokens - 1


def test_blocks_are_clusters():
    """Keys in tight groups all over the video: every block holds tokens of one group."""
    call = call_of(MIXED)
    draw = torch.Generator().manual_seed(3)
    group = torch.randint(7, (TOKENS,), generator=draw)
    centres = 50 * torch.randn(7, D, generator=draw)
    call.q[:, VIDEO] += centres[group][:, None]
    call.k[:, VIDEO] += centres[group][:, None]
    plan = SVG2(density=0.2, query_clusters=60, key_clusters=60).plan(Job(call, density=0.2))
    for table in (plan.q_slots, plan.k_slots):
        slots = table.flatten(0, 1)
        for block in slots[((slots >= VIDEO.start) & (slots < VIDEO.stop)).any(-1)]:
            assert len(group[block[block >= 0].long() - VIDEO.start].unique()) == 1


@pytest.mark.parametrize("tail", ["row", "block", None])
def test_all_clusters_kept_are_dense_attention(tail):
    for bias in (None, holes()):
        call = call_of(MIXED, bias=bias)
        job = Job(call, tail=tail, density=0.9999)
        out = SVG2().attend(job)
        assert not job.used.sees_everything
        torch.testing.assert_close(out.double(), truth(call), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("density", "routing"), [(None, "auto"), (0.3, "mass")])
def test_what_every_method_must_do(density, routing):
    one = SVG2(routing=routing)
    check_everything_kept_is_dense(one)
    check_other_rows_are_exact(one, density)
    check_branches_are_apart(one, density)


def test_top_p_keeps_the_mass_that_it_says():
    """Keys that hardly differ within a cluster, so that the means tell the truth."""
    call = call_of(MIXED)
    q, k = call.q, call.k
    draw = torch.Generator().manual_seed(0)
    group = torch.randint(20, (TOKENS,), generator=draw)
    for x in (q, k):
        x[:, VIDEO] = 2.5 * torch.randn(B, 20, H, D, generator=draw)[:, group] + 0.01 * x[:, VIDEO]
    video = [x[:, VIDEO].transpose(1, 2).flatten(0, 1) for x in (q, k)]
    mass = (video[0] @ video[1].transpose(1, 2) * D**-0.5).softmax(-1)
    shares = []
    for top_p in (0.3, 0.6, 0.9):
        plan = SVG2(top_p=top_p, routing="mass", query_clusters=60, key_clusters=60).plan(Job(call))
        keep, held = kept_mask(plan), []
        for g in range(B * H):
            where = torch.zeros(len(keep[g]), MIXED.tokens).scatter_(
                1, plan.q_slots[g].clamp(min=0).long(), (plan.q_slots[g] >= 0).float()
            )
            keys = torch.zeros(keep.shape[2], MIXED.tokens).scatter_add_(
                1, plan.k_slots[g].clamp(min=0).long(), (plan.k_slots[g] >= 0).float()
            )
            seen = (where.T @ keep[g].float() @ keys)[VIDEO, VIDEO] > 0
            held.append((mass[g] * seen).sum(-1))
        held = torch.stack(held)
        kept = rows_kept(plan)
        assert kept.amin() >= math.floor(svg2.LEAST * TOKENS)
        assert (held >= top_p - 0.02).float().mean() > 0.9  # some clusters are two groups
        shares.append(float(kept.float().mean() / TOKENS))
    assert shares[0] <= shares[1] < shares[2] < 0.6


@pytest.mark.parametrize(
    ("tokens", "clusters"),
    [(75_600, (295, 1000)), (118_800, (400, 1000)), (32_760, (127, 436)), (320, (40, 80)), (1, (1, 1))],
)
def test_numbers_of_clusters(tokens, clusters):
    assert SVG2().clusters_of(tokens) == clusters
    assert SVG2(query_clusters=7, key_clusters=9).clusters_of(tokens) == (min(7, tokens), min(9, tokens))


@pytest.mark.parametrize("routing", ["mass", "error"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_a_device_is_never_waited_for(routing, biased):
    """Of tables, the first step copies which tokens it starts from, from memory that need not be waited for."""
    for density in (None, 0.3):
        run, one = new_run(), SVG2(routing=routing)
        for number, sigma in enumerate((1.0, 0.75, 0.5)):
            run.begin_call(sigma)
            call = call_of(MIXED, run=run, bias=holes() if biased else None)
            mask = None if call.mask is None else call.mask.to("meta")
            call = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"), mask=mask)
            with no_waits(uploads=number == 0):
                plan = one.plan(Job(call, density=density))
            assert plan.cols.device.type == "meta" and plan.cols.shape[2] < plan.k_slots.shape[1]


# --- what is remembered -----------------------------------------------------------------------------------------------


def step(run, sigma: float, seed: int = 0):
    """The next call of a run, all on the same layer and prompts."""
    run.begin_call(sigma)
    return call_of(MIXED, run=run, seed=seed)


def test_a_step_starts_from_the_centroids_of_the_one_before(monkeypatch):
    starts = []
    plain = svg2.kmeans
    monkeypatch.setattr(
        svg2, "kmeans", lambda x, start, rounds, size: starts.append((start, rounds)) or plain(x, start, rounds, size)
    )
    run, one = new_run(), SVG2()
    call = step(run, 1.0)
    one.plan(Job(call, density=0.3))
    kept = [call.state(branch, Warm) for branch in call.branches]
    want = [x for warm in kept for x in (warm.queries, warm.keys)]
    one.plan(Job(step(run, 0.75), density=0.3))
    assert [rounds for _, rounds in starts] == [svg2.FIRST_ROUNDS] * 4 + [svg2.LATER_ROUNDS] * 4
    assert all(torch.equal(a, b) for (a, _), b in zip(starts[4:], want, strict=True))
    one.plan(Job(step(run, 1.0), density=0.3))  # noise was added again
    assert [rounds for _, rounds in starts[8:]] == [svg2.FIRST_ROUNDS] * 4
    assert all(torch.equal(a[0], b[0]) for a, b in zip(starts[:4], starts[8:], strict=True))


def test_plans_for_several_densities_search_once():
    run, one = new_run(), SVG2()
    call = step(run, 1.0)
    job = Job(call, density=0.3)
    want = [one.plan(job)]
    before = call.state(call.branches[0], Warm).keys
    for density in (0.1, 0.5, 0.3):
        want.append(one.plan(Job(call, density=density, memo=job.memo)))
    assert call.state(call.branches[0], Warm).keys is before
    assert torch.equal(want[0].cols, want[3].cols) and torch.equal(want[0].counts, want[3].counts)
    assert want[1].counts.sum() < want[0].counts.sum() < want[2].counts.sum()


def test_runs_and_layers_do_not_see_each_other():
    one, plans = SVG2(), []
    for _ in range(2):
        run = new_run()
        one.plan(Job(step(run, 1.0), density=0.3))
        plans.append(one.plan(Job(step(run, 0.75, seed=1), density=0.3)))
    assert torch.equal(plans[0].k_slots, plans[1].k_slots) and torch.equal(plans[0].cols, plans[1].cols)
    other = one.plan(Job(call_of(MIXED, layer=3, seed=1), density=0.3))
    assert not torch.equal(other.k_slots, plans[0].k_slots)


def test_prompts_are_the_same_together_and_apart_over_steps():
    one, together, apart = SVG2(), new_run(), new_run()
    for sigma, seed in ((1.0, 0), (0.75, 1), (0.5, 2)):
        want = one.attend(Job(step(together, sigma, seed), density=0.3))
        call = step(apart, sigma, seed)
        for branch in reversed(call.branches):
            out = one.attend(Job(call.only(branch), density=0.3))
            torch.testing.assert_close(out, want[branch.rows], atol=1e-5, rtol=0)


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
@pytest.mark.parametrize("density", [0.0, 0.4])
def test_through_the_sampler(comfy, density):
    check_through_the_sampler(SVG2(density))


def test_tiny_videos_have_clusters_too():
    layout = arrange([("text", 3), ("video", (1, 1, 2))])
    call = call_of(layout)
    out = SVG2().attend(Job(call, density=0.5))
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, :3].double(), truth(call)[:, :3], atol=1e-5, rtol=0)
    assert isinstance(cut(torch.zeros(1, 1, dtype=torch.int64), 1, 1), Pieces)
