"""Sparse VideoGen: the published width, bands by true places, the trial against attention, a density that is met."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, check_plan, kept_lists, kept_mask
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.job import Job
from interspatial.models.attention.svg1 import SVG1, plan_of, trial_errors
from interspatial.models.attention.svg1_bands import make_bands, sampled_rows
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import (
    MIXED,
    call_of,
    check_branches_are_apart,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    check_through_the_sampler,
    truth,
)

pytestmark = pytest.mark.usefixtures("poisoned")

B, H = 2, 3
RUNS = Blocks("tile", 4)  # 16 tokens a block
VIDEO = slice(MIXED.video.start, MIXED.video.stop)
TOKENS = len(MIXED.video)
GRIDS = [(5, 8, 8), (5, 10, 13), (1, 9, 7), (21, 5, 3), (70, 3, 2)]


def pairs(bands, density: float) -> torch.Tensor:
    """Token pairs that both kinds of heads keep: bool [2, N, N]."""
    tokens = int(bands.k_block.shape[1])
    out = torch.zeros(2, tokens, tokens, dtype=torch.bool)
    for kind, keep in enumerate(bands.entry <= density):
        owner = torch.empty(tokens, dtype=torch.int64)
        for i, slots in enumerate(bands.q_slots[kind]):
            owner[slots[slots >= 0].long()] = i
        out[kind] = keep[owner][:, bands.k_block[kind]]
    return out


def places(grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each token stands frame after frame, and place after place through time."""
    frames, size = grid[0], grid[1] * grid[2]
    token = torch.arange(frames * size)
    return token, token % size * frames + token // size


# --- bands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.25, 0.3, 0.5])
def test_the_published_width(density):
    """Frames on either side, (L / P) (1 - sqrt(1 - s)): 2.8134665 for s = 0.25 of 21 frames, as a user's log has it."""
    frames, height, width = grid = (21, 4, 4)
    want = frames * (1 - math.sqrt(1 - density))
    assert density != 0.25 or want == pytest.approx(2.8134665, abs=1e-6)
    kept = pairs(make_bands(grid, 1, False, 8), density)
    for kind, place in enumerate(places(grid)):
        apart = (place[:, None] - place).abs()[kept[kind]]
        assert float(apart.max()) / (height * width) == pytest.approx(want, abs=1 / (height * width))


@pytest.mark.parametrize(
    ("grid", "first_frame"),
    [(grid, first) for grid in GRIDS for first in (False, True) if grid[0] > 1 or not first],  # one frame is the first
    ids=str,
)
def test_both_kinds_have_the_stated_density(grid, first_frame):
    for size in (7, 16, 64):
        bands = make_bands(grid, size, first_frame, 8)
        tokens = math.prod(grid)
        for kind in range(2):
            live = [(slots[kind] >= 0).sum(-1).double() for slots in (bands.q_slots, bands.k_slots)]
            pair = live[0].max() * live[1].max() / tokens**2
            least = float((bands.entry[kind] == 0).double().mul(live[0][:, None] * live[1]).sum() / tokens**2)
            for density in (0.02, 0.1, 0.25, 0.5, 0.77):
                got = float(pairs(bands, density)[kind].double().mean())
                assert abs(got - max(density, least)) <= pair
    assert pairs(bands, 1.0).all()
    assert (bands.entry.amin(-1)[(bands.q_slots >= 0).any(-1)] == 0).all()  # no query is ever left without a key


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_band_is_a_band(grid):
    """No pair of blocks is kept while a clearly nearer one is not, counted in the order of its kind."""
    bands = make_bands(grid, 16, False, 8)
    for kind, place in enumerate(places(grid)):
        live = (bands.q_slots[kind] >= 0).any(-1)
        centre = torch.stack([place[s[s >= 0].long()].double().mean() for s in bands.q_slots[kind][live]])
        apart = (centre[:, None] - centre).abs()
        keep = (bands.entry[kind] <= 0.3)[live][:, live] | (apart == 0)
        if not keep.all():
            assert apart[keep].max() <= apart[~keep].min() + 1e-2
        assert torch.equal(bands.q_slots[kind], bands.k_slots[kind])


@pytest.mark.parametrize("grid", [(21, 5, 3), (9, 8, 8), (70, 3, 2)], ids=str)
def test_the_first_frame_is_the_first_frame_for_both_kinds(grid):
    size = grid[1] * grid[2]
    with_it, without = (pairs(make_bands(grid, 16, first, 8), 0.3) for first in (True, False))
    assert with_it[:, :, :size].all() and not without[:, :, :size].all()
    for kind in range(2):
        assert not with_it[kind].all(0)[size:].any()  # and of the others nothing is kept by all
        assert with_it[kind][:, size:].sum() < without[kind][:, size:].sum()  # it counts


def test_the_first_frame_is_left_out_where_it_is_too_large_a_part():
    wide, narrow = arrange([("video", (21, 5, 3))]), arrange([("video", (5, 9, 7))])
    for layout, density, kept in ((wide, 0.3, True), (wide, 0.15, False), (narrow, 0.3, False), (narrow, 0.8, True)):
        for asked in (True, False):
            plan = SVG1(first_frame=asked).plan(Job(call_of(layout), RUNS, density=density))
            frame = math.prod(layout.grid[1:])
            inside = ((plan.k_slots >= 0) & (plan.k_slots < frame)).any(-1)
            keep, live = kept_mask(plan), plan.q_live > 0
            assert all(keep[g][live[g]][:, inside[g]].all() for g in range(B * H)) == (kept and asked)


@pytest.mark.parametrize("frames", [1, 2, 7, 63, 64])
def test_rows_are_sampled_from_all_frames(frames):
    rows = sampled_rows(frames, 40, 64)
    assert (rows // 40).bincount(minlength=frames).min() >= 64 // frames
    assert (rows % 40).unique().numel() > 20 and rows.max() < frames * 40


def test_few_rows_are_of_different_frames():
    rows = sampled_rows(100, 6, 64)
    assert (rows // 6).unique().numel() == 64


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5, 0.9, 1.0])
def test_the_longest_list_is_known_beforehand(density):
    bands = make_bands((21, 5, 3), 7, True, 8)
    assert bands.longest(density) == (bands.entry <= density).sum(-1).max()


# --- the choice -------------------------------------------------------------------------------------------------------


def bias() -> torch.Tensor:
    out = torch.zeros(B, MIXED.tokens)
    out[0, 50:300], out[1, ::3] = -torch.inf, -1.25
    return out


@pytest.mark.parametrize("tail", ["row", None])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_the_trial_is_what_attention_does_to_the_sampled_rows(tail, biased):
    call = call_of(MIXED, bias=bias() if biased else None)
    call.q[:, VIDEO] *= 3
    bands = make_bands(MIXED.grid, 16, False, 40)
    job = Job(call, RUNS, tail)
    keep = bands.entry <= 0.3
    got = trial_errors(job, bands, keep)
    rows = bands.rows + VIDEO.start
    for kind in range(2):
        plan = plan_of(call, bands, *kept_lists(keep), torch.full((B * H,), kind))
        error = (job.run(plan).double() - truth(call))[:, rows].square().mean((1, 3)).flatten()
        torch.testing.assert_close(got[kind].double(), error, atol=1e-9, rtol=2e-3)


def test_heads_get_the_band_that_they_attend_in():
    """Queries and keys are a code of their place in one order or the other: head 0 is spatial, head 1 temporal."""
    grid = (16, 6, 5)
    layout = arrange([("text", 3), ("video", grid)])
    call = call_of(layout, heads=2, dim=64)
    video = slice(3, None)
    code = torch.arange(1, 33) * math.pi / 480
    for head, place in enumerate(places(grid)):
        wave = place[:, None] * code
        call.q[:, video, head] = call.k[:, video, head] = 2 * torch.cat((wave.cos(), wave.sin()), 1)
    plans = {}
    for tail in ("row", None):
        job = Job(call, RUNS, tail, 0.3)
        plans[tail] = SVG1(first_frame=False).plan(job)
        out = job.run(plans[tail])[:, video].double()
        want = truth(call)[:, video]
        assert float((out - want).norm() / want.norm()) < 0.12
    plan = plans[None]
    spatial, temporal = plan.q_slots[0], plan.q_slots[1]
    assert torch.equal(plan.q_slots[2], spatial) and torch.equal(plan.q_slots[3], temporal)
    for table, frames in ((spatial, 1), (temporal, 16)):
        assert {len(((s[s >= 3] - 3) // 30).unique()) for s in table if (s >= 3).any()} == {frames}


# --- what every method must do ----------------------------------------------------------------------------------------


def rows_kept(plan: BlockPlan) -> torch.Tensor:
    """Share of the video keys that video queries keep, for each head."""
    keep = kept_mask(plan).double()
    of_video = [((x >= VIDEO.start) & (x < VIDEO.stop)).sum(-1).double() for x in (plan.q_slots, plan.k_slots)]
    return torch.einsum("gq,gqk,gk->g", of_video[0], keep, of_video[1]) / TOKENS**2


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
def test_the_density_of_a_plan(density):
    for blocks in (Blocks(), RUNS, Blocks("tile", 2)):
        plan = SVG1().plan(Job(call_of(MIXED), blocks, density=density))
        check_plan(plan, MIXED.tokens, MIXED.tokens)
        pair = (blocks.side or 8) ** 4 / TOKENS**2
        floor = 2 * (blocks.side or 8) ** 2 / TOKENS  # blocks as large as that: each query's own is more
        assert ((rows_kept(plan) - density).abs() <= max(pair, floor - density)).all()
        keep = kept_mask(plan)
        for g in range(B * H):
            slots = plan.k_slots[g]
            other = ((slots >= 0) & ((slots < VIDEO.start) | (slots >= VIDEO.stop))).any(-1)
            assert keep[g][:, other].all() and int(plan.k_live[g, other].sum()) == MIXED.tokens - TOKENS


def test_the_contract():
    check_everything_kept_is_dense(SVG1())
    check_other_rows_are_exact(SVG1(), 0.3)
    check_branches_are_apart(SVG1(), 0.3)


@pytest.mark.parametrize("tail", ["row", "block", None])
def test_a_band_as_wide_as_the_video_is_dense_attention(tail):
    for key_bias in (None, bias()):
        call = call_of(MIXED, bias=key_bias)
        job = Job(call, RUNS, tail, 0.99999)
        out = SVG1().attend(job)
        assert not job.used.sees_everything
        torch.testing.assert_close(out.double(), truth(call), atol=1e-5, rtol=0)


def test_a_device_is_never_waited_for():
    """On the meta device every read of a value raises."""
    call = call_of(MIXED, batch=1)
    call = replace(call, q=call.q.to("meta"), k=call.k.to("meta"), v=call.v.to("meta"))
    assert SVG1().plan(Job(call, RUNS, "row", 0.3)).cols.device.type == "meta"


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_through_the_sampler(comfy):
    check_through_the_sampler(SVG1(0.4))
