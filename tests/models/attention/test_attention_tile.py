"""Attention tiles: the published sparsities, the closed form, blocks that cross frames, what every method must do."""

from __future__ import annotations

import os

import pytest
import torch
from interspatial.kernels.block_plan import check_plan
from interspatial.models.attention.attention_tile import AttentionTile, most_references, references
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.job import Job
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import (
    MIXED,
    TILES,
    call_of,
    check_branches_are_apart,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    check_through_the_sampler,
    video_part,
)

pytestmark = pytest.mark.usefixtures("poisoned")

PUBLISHED = {  # frames, references: sparsity in percent, with blocks of 128 and 3600 tokens a frame
    (8, 4): 17.60, (8, 3): 29.88, (8, 2): 45.47, (8, 1): 64.38,
    (24, 12): 21.51, (24, 8): 40.30, (24, 6): 51.88, (24, 4): 64.98, (24, 3): 72.05,
}  # fmt: skip
LONG = arrange([("text", 5), ("video", (21, 4, 4))])


def closed_form(frames: int, count: int) -> float:
    return (count * (2 * frames - count) + frames - count) / frames**2


def frame_map(frames: int, chosen: tuple[int, ...]) -> torch.Tensor:
    """By loops: bool [T, T]."""
    return torch.tensor([[f == g or f in chosen or g in chosen for g in range(frames)] for f in range(frames)])


@pytest.mark.parametrize(("frames", "count"), PUBLISHED)
def test_the_published_sparsities(frames, count):
    """Blocks of 128 run over the borders of frames and count when any of their tokens does."""
    keep = frame_map(frames, references(frames, count))
    blocks = -(-frames * 3600 // 128)
    touches = torch.zeros(blocks, frames)
    for block in range(blocks):
        touches[block, 128 * block // 3600 : min(128 * block + 127, frames * 3600 - 1) // 3600 + 1] = 1
    active = touches @ keep.float() @ touches.T > 0
    assert abs(100 * (1 - float(active.float().mean())) - PUBLISHED[frames, count]) < 0.005


@pytest.mark.parametrize("placement", ["stride", "even"])
@pytest.mark.parametrize("frames", [2, 11, 13, 21, 33])
def test_the_closed_form(frames, placement):
    layout = arrange([("video", (frames, 4, 4))])
    for count in (1, 2, 3, 5, frames):
        chosen = references(frames, count, placement)
        assert chosen[0] == 0 and list(chosen) == sorted(set(chosen)) and chosen[-1] < frames
        assert len(chosen) == min(count, frames) or placement == "stride"
        job = Job(call_of(layout, batch=1, heads=1), Blocks("tile", 2))
        part = video_part(AttentionTile(reference_frames=count, placement=placement).plan(job), job)
        assert float(part.float().mean()) == pytest.approx(closed_form(frames, len(chosen)))


def test_a_stride_can_give_fewer_references():
    assert references(21, 8) == (0, 3, 6, 9, 12, 15, 18) and references(21, 8, "even")[-1] == 18
    assert len(references(21, 8, "even")) == 8
    assert references(5, 0) == (0,) and references(5, 99) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(("frames", "count", "share"), [(21, 1, 0.138), (21, 4, 0.383), (33, 6, 0.355), (13, 4, 0.574)])
def test_densities_of_other_lengths(frames, count, share):
    assert closed_form(frames, count) == pytest.approx(share, abs=5e-4)
    shares = [closed_form(frames, n) for n in range(1, frames + 1)]
    assert most_references(shares, share + 1e-3) == count
    assert most_references(shares, 0.01) == 1, "the first frame always is one"


@pytest.mark.parametrize("placement", ["stride", "even"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.31, 0.5, 0.8])
def test_the_density_is_met_from_below(placement, density):
    for order in ("tile", "raster"):
        job = Job(call_of(LONG), Blocks(order, 2), "row", density)
        part = video_part(AttentionTile(placement=placement).plan(job), job)
        within = [s for n in range(1, 22) if (s := closed_form(21, len(references(21, n, placement)))) <= density]
        assert float(part.float().mean()) == pytest.approx(max(within, default=closed_form(21, 1)))


@pytest.mark.parametrize("order", ["cube", "token_major", "morton"])
def test_a_block_in_several_frames_is_joined_by_any_of_them(order):
    job = Job(call_of(arrange([("text", 9), ("video", (5, 5, 6))])), Blocks(order, 3))
    part = video_part(AttentionTile(reference_frames=2).plan(job), job)
    keep = frame_map(5, references(5, 2))
    tokens = (row[row >= 0].long() for row in job.order.slots[0, slice(*job.order.video)])
    frames = [((t - 9) // 30).unique() for t in tokens]
    for i, mine in enumerate(frames):
        for j, theirs in enumerate(frames):
            span = [torch.arange(int(f[0]), int(f[-1]) + 1) for f in (mine, theirs)]  # frames between count as its own
            assert bool(part[0, i, j]) == bool(keep[span[0]][:, span[1]].any())


def test_a_density_counts_blocks_that_cross_frames():
    """Cubes of 3 frames: what they keep is more than the formula for frames says, and is what is compared."""
    job = Job(call_of(LONG), Blocks("cube", 3), "row", 0.5)
    part = video_part(AttentionTile().plan(job), job)
    assert 0.3 < float(part.float().mean()) <= 0.5


def test_reference_frames_are_full_and_leave_short_lists():
    """12 blocks a frame, 5 frames, text before and sound after: frames 0 and 3 see all, the others 3 frames."""
    job = Job(call_of(MIXED), TILES)
    plan = AttentionTile(reference_frames=2).plan(job)
    assert plan.full == ((0, 13), (37, 49), (61, 63)) and plan.cols.shape == (1, 63, 36 + 3)
    check_plan(plan, MIXED.tokens, MIXED.tokens)
    keep = frame_map(5, (0, 3)).repeat_interleave(12, 0).repeat_interleave(12, 1)
    assert torch.equal(video_part(plan, job)[0], keep)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({}, ""), ({"reference_frames": 3}, "reference_frames")],
)
def test_a_density_goes_before_the_number(settings, rule):
    method = AttentionTile(**settings)
    assert method.own_rule == rule
    part = video_part(method.plan(job := Job(call_of(LONG), Blocks("tile", 2), "row", 0.15)), job)
    assert float(part.float().mean()) == pytest.approx(closed_form(21, 1))


def test_a_picture_is_refused():
    method = AttentionTile()
    assert "single frame" in method.why_not(call_of(arrange([("video", (1, 8, 8))])))
    assert method.why_not(call_of(MIXED)) is None


def test_everything_kept_is_dense():
    check_everything_kept_is_dense(AttentionTile())


def test_other_rows_are_exact():
    check_other_rows_are_exact(AttentionTile(), 0.4)


def test_branches_are_apart():
    check_branches_are_apart(AttentionTile(), 0.4)


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_through_the_sampler(comfy):
    check_through_the_sampler(AttentionTile(reference_frames=1))
