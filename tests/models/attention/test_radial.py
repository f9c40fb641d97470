"""Radial Attention: the published widths and gaps, its map by hand, and what every method must do."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import torch
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.extents import extents
from interspatial.models.attention.job import Job
from interspatial.models.attention.orders import raster, tile
from interspatial.models.attention.radial import Radial, half_width, left_out, window_scale
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import (
    MIXED,
    RUNS,
    TILES,
    call_of,
    check_branches_are_apart,
    check_density,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    check_through_the_sampler,
    new_run,
    video_part,
)

pytestmark = pytest.mark.usefixtures("poisoned")

WAN_HD, WAN_SD = 3600, 1560  # tokens of a frame
FRAMES = torch.arange(33.0)


@pytest.mark.parametrize(
    ("tokens", "decay", "block", "widths"),
    [
        (WAN_HD, 0.2, 128, {0: 3600, 1: 3600, 2: 204.8, 3: 204.8, 4: 128, 7: 128, 20: 128}),  # 1024, 512, ... x 0.2
        (WAN_HD, 0.95, 128, {1: 3600, 2: 972.8, 3: 972.8, 4: 486.4, 8: 243.2, 16: 128}),  # HunyuanVideo
        (WAN_SD, 0.8, 64, {1: 1560, 2: 409.6, 4: 204.8, 8: 102.4, 16: 64}),
        (WAN_SD, 4.0, 64, {1: 1560, 2: 1560, 4: 1024}),  # never more than the frame
    ],
)
def test_the_published_widths(tokens, decay, block, widths):
    width = half_width(FRAMES, tokens, block, decay)
    assert {d: pytest.approx(float(width[d])) for d in widths} == widths


@pytest.mark.parametrize(
    ("tokens", "block", "gone"),
    [
        (WAN_HD, 128, [d for d in range(32, 33) if d % 2]),  # 4096 / 64 = 64: every second from 32 on
        (WAN_SD, 128, [d for d in range(16, 32) if d % 2] + [d for d in range(32, 33) if d % 4]),  # 2048 / 32 = 64
        (WAN_SD, 64, []),  # half the block: one doubling later, and 32 is even
        (100, 64, [d for d in range(2, 4) if d % 2] + [d for d in range(4, 8) if d % 4] + [
            d for d in range(8, 16) if d % 8] + [d for d in range(16, 32) if d % 16]),
    ],
)  # fmt: skip
def test_far_frames_are_thinned_as_published(tokens, block, gone):
    assert left_out(FRAMES, tokens, block).nonzero().flatten().tolist() == gone


@pytest.mark.parametrize("make", [raster, tile])
def test_the_map_by_hand(make):
    """Frames of 80 tokens: 128 / 4 x 0.7 = 22.4 at distance 2 and 3, 11.2 at 4 and 5."""
    layout = arrange([("video", (6, 8, 10))])
    order = make(layout, 8 if make is raster else 4)
    box, tokens = extents(order, layout), [row[row >= 0].double() for row in order.slots[0]]
    keep = window_scale(box, layout, 8, 0.7) <= 1
    for i in range(len(keep)):
        for j in range(len(keep)):
            (f, at), (g, there) = (divmod(float(tokens[n].mean()), 80) for n in (i, j))
            limit, apart = {0: 80, 1: 80, 2: 22.4, 3: 22.4, 4: 11.2, 5: 11.2}[abs(f - g)], abs(at - there)
            assert bool(keep[i, j]) == (g == 0 or apart <= limit)
    without = window_scale(box, layout, 8, 0.7, first_frame=False) <= 1
    assert torch.equal(without, without.T) and without.sum() < keep.sum()


def test_a_wider_decay_or_density_keeps_what_was_kept():
    call = call_of(MIXED)
    kept = [video_part(Radial(decay=d).plan(job := Job(call, RUNS)), job) for d in (0.2, 0.8, 2.0)]
    kept += [video_part(Radial().plan(job := Job(call, RUNS, "row", d)), job) for d in (0.8, 0.9, 0.97)]
    for less, more in (*pairwise(kept[:3]), *pairwise(kept[3:])):
        assert (more | ~less).all() and more.sum() > less.sum()


def test_a_low_density_is_the_same_place_in_other_frames():
    layout = arrange([("video", (8, 8, 8))])
    job = Job(call_of(layout), TILES, "row", 0.25)  # 32 blocks, 256 pairs: 4 places in 8 x 8 frames
    part = video_part(Radial().plan(job), job)[0]
    place = extents(job.order, layout).centre[:, 1:]
    assert torch.equal(part, (place[:, None] == place).all(-1))


def test_one_plan_a_run_for_all_layers():
    run, method = new_run(), Radial()
    first = method.plan(Job(call_of(MIXED, run=run), TILES))
    assert method.plan(Job(call_of(MIXED, run=run, layer=7, seed=3), TILES)) is first
    other = method.plan(Job(call_of(MIXED, run=run), TILES, "row", 0.3))
    assert other is not first and method.plan(Job(call_of(MIXED, run=run), RUNS)).q_slots.shape != first.q_slots.shape
    assert method.plan(Job(call_of(arrange([("video", (4, 6, 9))]), run=run), TILES)).q_slots.numel() == 216


def test_a_single_frame_is_dense_by_its_own_rule():
    for around in ([("text", 3)], []):
        job = Job(call_of(arrange([*around, ("video", (1, 9, 11))])), Blocks("tile", 6))
        assert Radial().plan(job).sees_everything


def test_everything_kept_is_dense():
    check_everything_kept_is_dense(Radial())


@pytest.mark.parametrize("density", [0.001, 0.1, 0.37, 0.9])
@pytest.mark.parametrize("first_frame", [True, False])
def test_the_stated_density(density, first_frame):
    check_density(Radial(first_frame=first_frame), density)


def test_other_rows_are_exact():
    check_other_rows_are_exact(Radial(), 0.3)


def test_branches_are_apart():
    check_branches_are_apart(Radial(), None)


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_through_the_sampler(comfy):
    check_through_the_sampler(Radial(0.3))
