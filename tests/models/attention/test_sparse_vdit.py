"""Sparse-vDiT: every head runs its pattern, densities are met over a run, and tables are used only where they fit."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from interspatial.kernels.block_plan import check_plan, kept_mask, kept_share
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.calibrate import Calibration
from interspatial.models.attention.job import Job
from interspatial.models.attention.pattern_findings import Findings
from interspatial.models.attention.pattern_lists import PatternLists
from interspatial.models.attention.patterns import (
    FRAMES,
    HEADS,
    Pattern,
    pattern_map,
    places_of,
    stripe_columns,
    stripe_map,
)
from interspatial.models.attention.sparse_vdit import SparseVDiT
from interspatial.models.layout import arrange
from interspatial.models.report import Card
from interspatial.tests.models.attention.contract import (
    MIXED,
    RUNS,
    STEPS,
    TILES,
    call_of,
    check_branches_are_apart,
    check_everything_kept_is_dense,
    check_other_rows_are_exact,
    new_run,
    video_part,
)
from interspatial.tests.models.attention.pattern_tables import table_of

pytestmark = pytest.mark.usefixtures("poisoned")

LARGER = arrange([("video", (7, 12, 17)), ("text", 6)])


@pytest.fixture(scope="module")
def table():
    return table_of()


def all_patterns(table):
    """The table with heads that run every pattern in turn."""
    choice = torch.arange(table.choice.numel()).view(table.choice.shape) % len(table.patterns)
    return replace(table, choice=choice.to(torch.int8))


def job_of(table, layout=MIXED, density=None, *, sigma=1.0, **settings) -> Job:
    run = new_run()
    run.begin_call(sigma)
    return Job(call_of(layout, run=run, **settings), table.blocks, "row", density)


@pytest.mark.parametrize("layout", [MIXED, LARGER], ids=["calibrated", "larger"])
@pytest.mark.parametrize("shift", range(4))
def test_every_head_runs_its_pattern(table, layout, shift):
    table = all_patterns(table)
    table = replace(table, choice=(table.choice + 3 * shift) % len(HEADS))
    for sigma, number in ((1.0, 0), (0.2, 2)):
        for layer in range(2):
            job = job_of(table, layout, sigma=sigma, layer=layer)
            plan = SparseVDiT(pattern=table).plan(job)
            check_plan(plan, layout.tokens, layout.tokens)
            where, keep = places_of(job.order, layout), video_part(plan, job)
            columns = stripe_columns(table.mass_at(where.share)[layer])
            own = torch.eye(len(where), dtype=torch.bool)
            for g in range(6):
                pattern = HEADS[int(table.choice[number, layer, g % 3])]
                stripes = pattern.kind == "stripes"
                want = stripe_map(columns[g % 3][None], pattern, own)[0] if stripes else pattern_map(pattern, where)
                assert torch.equal(keep[g], want), pattern
            whole, (first, last) = kept_mask(plan), job.order.video
            assert whole[:, :, :first].all() and whole[:, :, last:].all()
            assert plan.full == job.order.other


def test_the_place_in_the_noise_range_decides(table):
    table = replace(table, choice=torch.tensor([1, 2, 0], dtype=torch.int8)[:, None, None].expand(3, 2, 3))
    share = [float(kept_share(SparseVDiT(pattern=table).plan(job_of(table, sigma=s)))) for s in (1.0, 0.6, 0.3)]
    assert share[0] < share[1] < share[2] == 1.0
    assert SparseVDiT(pattern=table).plan(job_of(table, sigma=0.3)).sees_everything


@pytest.mark.parametrize("density", [0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("layout", [MIXED, LARGER], ids=["calibrated", "larger"])
def test_a_density_is_met_over_the_run(layout, density):
    """Four steps, eight layers, three heads: to half of what one head's pattern can differ."""
    table, run, kept = table_of(layers=8, bins=2), new_run(), []
    method = SparseVDiT(density, table)
    for step in range(STEPS):
        run.begin_call(1 - step / STEPS)
        for layer in range(8):
            job = Job(call_of(layout, run=run, layer=layer), TILES, "row", density)
            kept.append(video_part(method.plan(job), job).float().mean())
    assert float(torch.stack(kept).mean()) == pytest.approx(density, abs=0.95 / 2 / (2 * 8 * 3))
    assert float(torch.stack(kept).std()) > 0.01, "heads, layers and steps differ"


def test_without_a_density_the_calibration_decides(table):
    for density in (0.2, 0.6):
        chosen, kept = table.chosen(density), []
        for sigma in (1.0, 0.6, 0.3):
            for layer in range(2):
                job = job_of(chosen, sigma=sigma, layer=layer)
                kept.append(float(video_part(SparseVDiT(pattern=chosen).plan(job), job).float().mean()))
        assert sum(kept) / 6 == pytest.approx(chosen.expected()[0], abs=1e-5)


def test_the_blocks_are_those_of_the_calibration(table):
    job = job_of(table)
    job.blocks = RUNS
    want, got = SparseVDiT(pattern=table).plan(job_of(table)), SparseVDiT(pattern=table).plan(job)
    assert torch.equal(got.q_slots, want.q_slots) and torch.equal(kept_mask(got), kept_mask(want))


def test_reference_frames_run_by_layer():
    table = table_of(patterns=FRAMES, density=0.7, layers=3)
    for layer in range(3):
        job = job_of(table, layer=layer)
        pattern = FRAMES[int(table.choice[0, layer, 0])]
        keep = video_part(SparseVDiT(pattern=table).plan(job), job)
        assert (keep == pattern_map(pattern, places_of(job.order, MIXED))).all()


def test_tables_that_do_not_fit_are_refused(table):
    assert SparseVDiT().why_not(call_of(MIXED)) == "no sparse pattern is connected"
    method = SparseVDiT(pattern=table)
    assert method.why_not(call_of(MIXED)) is None
    assert method.why_not(call_of(MIXED, layer=2)) == "a layer that was not calibrated"
    said = method.why_not(call_of(MIXED, heads=5))
    assert "calibrated on family unknown (0 layers, 3 heads of 32)" in said
    assert "this model is family unknown (0 layers, 5 heads of 32)" in said


def test_settings_are_known_by_their_table(table):
    """Two tables are never one key of a run's state, and the same one always is."""
    assert SparseVDiT(0.3, table) == SparseVDiT(0.3, table)
    assert SparseVDiT(0.3, table) != SparseVDiT(0.3, replace(table))
    assert hash(SparseVDiT(0.3, table)) == hash(SparseVDiT(0.3, table))


def test_lists_are_built_once_a_run(table):
    run = new_run()
    for step in range(3):
        run.begin_call(1 - step / STEPS)
        for layer in range(2):
            SparseVDiT(0.4, table).plan(Job(call_of(MIXED, run=run, layer=layer), TILES, "row", 0.4))
    assert len(run) <= 1 + 1 + 1 + 3 * 2  # the order, the lists, the choice, and heads by bin and layer


def test_a_call_waits_for_no_device(table):
    """Once the lists are there. On the meta device every read of a value raises."""
    lists = PatternLists.of(table, TILES.of(call_of(MIXED)), MIXED)
    moved = replace(
        lists, order=lists.order.to("meta"), columns=lists.columns.to("meta"), sinks=lists.sinks.to("meta"),
        fixed={number: (cols.to("meta"), counts.to("meta")) for number, (cols, counts) in lists.fixed.items()},
    )  # fmt: skip
    stripes = next(number for number, pattern in enumerate(HEADS) if pattern.kind == "stripes")
    groups = [(number, torch.tensor([head], device="meta")) for head, number in enumerate((0, 2, stripes))]
    plan = moved.plan(groups, 1, 2)
    assert plan.cols.device.type == "meta" and plan.cols.shape[0] == 6


def test_everything_kept_is_dense(table):
    check_everything_kept_is_dense(SparseVDiT(pattern=table))


@pytest.mark.parametrize("density", [None, 0.3])
def test_other_rows_are_exact(table, density):
    check_other_rows_are_exact(SparseVDiT(pattern=all_patterns(table)), density)


@pytest.mark.parametrize("density", [None, 0.3])
def test_branches_are_apart(table, density):
    check_branches_are_apart(SparseVDiT(pattern=all_patterns(table)), density)


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
@pytest.mark.parametrize("name", ["wan_odd", "hunyuan_video_masked"])
def test_a_calibration_serves_other_runs(comfy, name):
    """Calibrated on one prompt at 2 steps of Euler; used with another sampler, other steps, prompts and guidance."""
    from interspatial.models import host
    from interspatial.models.attention.sparse import SparseAttention
    from interspatial.tests.models.tinies import BY_NAME, sample

    import nodes

    tiny, findings = BY_NAME[name], Findings(HEADS, bins=3)
    model, prompts = tiny.model(), (tiny.prompt(3, 5), tiny.prompt(4, 7))
    blocks = Blocks("tile", 2)
    sample(host.attach_attention(model, Card("calibrate", "measure"), Calibration(findings, blocks)), tiny)
    method = SparseVDiT(pattern=findings.table(0.4))
    patched = host.attach_attention(model, Card("sparse", "sparse"), SparseAttention(method, blocks=blocks))
    plain = sample(model, tiny, cfg=3.0, prompts=prompts)
    out = sample(patched, tiny, cfg=3.0, prompts=prompts)
    assert out.isfinite().all() and not torch.equal(out, plain)
    with torch.inference_mode():
        latent = {"samples": tiny.samples()}
        other = nodes.common_ksampler(patched, 3, 3, 1.0, "heun", "normal", *prompts, latent)[0]["samples"]
    assert other.isfinite().all()
    layers = len(tiny.layers)
    assert f"sparse {layers}/{layers} layers, 3/3 steps" in host.report_of(patched)


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_a_table_of_another_model_leaves_the_run_as_it_is(comfy, table):
    from interspatial.models import host
    from interspatial.models.attention.sparse import SparseAttention
    from interspatial.tests.models.tinies import BY_NAME, sample

    tiny = BY_NAME["wan"]
    model = tiny.model()
    patched = host.attach_attention(model, Card("sparse", "sparse"), SparseAttention(SparseVDiT(pattern=table)))
    assert torch.equal(sample(patched, tiny), sample(model, tiny))
    assert "calibrated on family unknown (0 layers" in host.report_of(patched)
    assert "this model is family wan (2 layers" in host.report_of(patched)


def test_patterns_of_one_price_are_few():
    """The bands and stripes of one share differ by a block or two; what is chosen between them is by error."""
    table = table_of()
    for amount in (0.15, 0.25, 0.4, 0.6):
        same = [float(table.prices[i]) for i, p in enumerate(HEADS) if p.amount == amount]
        assert max(same) - min(same) < 0.01
    assert table.patterns[1] == Pattern("skip") and float(table.prices[1]) == pytest.approx(1 / 60)
