"""Calibration: errors of sampled rows against running the pattern, what is averaged, a run that stays as it is."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from interspatial.kernels.block_attend import block_attend_reference
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.calibrate import Calibration
from interspatial.models.attention.mapped import mapped_plan
from interspatial.models.attention.pattern_findings import Findings
from interspatial.models.attention.patterns import (
    FRAMES,
    HEADS,
    pattern_map,
    places_of,
    stripe_columns,
    stripe_map,
)
from interspatial.models.attention.sampled_rows import SampledRows, stratified_rows
from interspatial.models.layout import arrange
from interspatial.models.report import Card
from interspatial.tests.models.attention.contract import MIXED, TILES, call_of, new_run, truth
from interspatial.tests.models.attention.pattern_tables import calibrate, dense_call

pytestmark = pytest.mark.usefixtures("poisoned")

LONG = arrange([("video", (9, 16, 16))])
ONE_EACH = [pattern for pattern in HEADS if pattern.amount in (0, 0.25)]
VIDEO = slice(MIXED.video.start, MIXED.video.stop)
BIAS = torch.zeros(2, MIXED.tokens)
BIAS[0, 50:90], BIAS[1, ::3] = -torch.inf, -1.25


def sampled(call, batch: int, tail, rows: torch.Tensor | None = None) -> tuple[SampledRows, torch.Tensor]:
    rows = torch.arange(VIDEO.start, VIDEO.stop) if rows is None else rows
    bias = None if call.key_bias is None else call.key_bias[batch]
    order = TILES.of(call)
    return SampledRows.of(call.q[batch], call.k[batch], call.v[batch], rows, order, key_bias=bias, tail=tail), rows


@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "bias"])
@pytest.mark.parametrize("tail", ["row", "block", None])
def test_a_pattern_on_sampled_rows_is_the_pattern_in_the_kernel(tail, bias):
    call = call_of(MIXED, bias=bias)
    order, where = TILES.of(call), places_of(TILES.of(call), MIXED)
    rows = torch.tensor([9, 10, 55, 300, 444, 658])
    for batch in range(2):
        sample, _ = sampled(call, batch, tail, rows)
        ((_, scores),) = sample.chunks()
        torch.testing.assert_close(
            scores.exact().transpose(0, 1).double(), truth(call)[batch, rows], atol=1e-5, rtol=0
        )
        for pattern in ONE_EACH:
            if pattern.kind == "stripes":
                columns = torch.randperm(len(where), generator=torch.Generator().manual_seed(batch))[None]
                keep = stripe_map(columns, pattern, torch.eye(len(where), dtype=torch.bool))[0]
            else:
                keep = pattern_map(pattern, where)
            plan = mapped_plan(order, 1, lambda heads, keep=keep: keep[None])
            want = block_attend_reference(call.q, call.k, call.v, plan, key_bias=call.key_bias, tail=tail)
            got = scores.kept(keep[None, sample.block])
            torch.testing.assert_close(got.transpose(0, 1), want[batch, rows], atol=1e-5, rtol=0)


def test_heads_may_come_one_by_one():
    sample, _ = sampled(call_of(MIXED), 0, "row")
    ((_, whole),) = sample.chunks()
    parts = list(sample.chunks(1))
    assert [heads for heads, _ in parts] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    torch.testing.assert_close(torch.cat([scores.exact() for _, scores in parts]), whole.exact())
    torch.testing.assert_close(torch.cat([scores.mass() for _, scores in parts]), whole.mass())


def test_the_mass_of_a_block_is_that_of_its_tokens():
    call = call_of(MIXED, bias=BIAS)
    sample, _ = sampled(call, 1, None)
    ((_, scores),) = sample.chunks()
    q, k = call.q[1].double(), call.k[1].double()
    share = (torch.einsum("nhd,mhd->hnm", q, k) * 32**-0.5 + BIAS[1].double()).softmax(-1)[:, VIDEO].mean(1)
    blocks = [row[row >= 0].long() for row in sample.order.slots[0, slice(*sample.order.video)]]
    want = torch.stack([share[:, block].mean(1) for block in blocks], 1)
    torch.testing.assert_close(scores.mass().double(), want, atol=1e-9, rtol=1e-4)


def test_rows_are_spread_over_the_video():
    rows = stratified_rows(64, 100, 1387, seed=3)
    assert rows.shape == (64,) and rows[0] >= 100 and rows[-1] < 1387
    border = 100 + torch.arange(65) * 1287 / 64
    assert (rows >= border[:-1].floor()).all() and (rows <= border[1:]).all() and (rows.diff() > 0).all()
    assert not torch.equal(rows, stratified_rows(64, 100, 1387, seed=4))
    assert torch.equal(stratified_rows(64, 5, 40, seed=0), torch.arange(5, 40))


def test_256_rows_tell_the_error_of_all():
    """2304 rows: the errors of the patterns to 10 % each."""
    few, all_rows = (
        calibrate(Findings(HEADS, bins=1), LONG, layers=1, sigmas=(1.0,), batch=1, rows=rows) for rows in (256, 4000)
    )
    few, all_rows = (found.layers[0].errors[0] for found in (few, all_rows))
    assert ((few - all_rows).abs() <= 0.1 * all_rows).all()
    assert (all_rows[:, 0] == 0).all() and (all_rows[:, 1:] > 0.01).all()


@pytest.mark.parametrize("tail", ["row", None])
def test_errors_are_shares_of_the_layers_output(tail):
    findings = calibrate(Findings(HEADS, tail, bins=1), layers=1, sigmas=(1.0,), rows=4000)
    call = dense_call(run=new_run())
    where = findings.scene.places
    want = truth(call)[0, VIDEO]
    for number, pattern in enumerate(HEADS):
        if pattern.kind in ("full", "stripes"):
            continue
        plan = mapped_plan(TILES.of(call), 1, lambda heads, p=pattern: pattern_map(p, where)[None])
        out = block_attend_reference(call.q, call.k, call.v, plan, tail=tail)[0, VIDEO].double()
        apart = (out - want).square().sum((0, 2)) / want.square().sum((0, 2)).mean()
        torch.testing.assert_close(findings.layers[0].errors[0, :, number].double(), apart, rtol=1e-3, atol=1e-6)


def test_stripes_are_measured_where_the_mass_has_been_so_far():
    findings = calibrate(Findings(HEADS, bins=1), layers=1, sigmas=(1.0, 0.5), batch=1, rows=4000)
    number, pattern = next((i, p) for i, p in enumerate(HEADS) if p.kind == "stripes")
    run = new_run()
    calls = [dense_call(run=run, seed=10 * step, batch=1) for step in (0, 1)]
    masses = torch.stack([next(sampled(call, 0, "row")[0].chunks())[1].mass() for call in calls])
    torch.testing.assert_close(findings.layers[0].mass, masses.sum(0))
    total = 0
    for call, mass in zip(calls, masses.cumsum(0), strict=True):
        keep = stripe_map(stripe_columns(mass), pattern, torch.eye(mass.shape[1], dtype=torch.bool))
        plan = mapped_plan(TILES.of(call), 3, lambda heads, keep=keep: keep[heads])
        out = block_attend_reference(call.q, call.k, call.v, plan, tail="row")[0, VIDEO].double()
        want = truth(call)[0, VIDEO]
        total += (out - want).square().sum((0, 2)) / want.square().sum((0, 2)).mean()
    torch.testing.assert_close(findings.layers[0].errors[0, :, number].double(), total, rtol=1e-3, atol=1e-6)


def test_only_positive_prompts_count():
    """Of a batch of both, the rows of the positive one; alone they give the same."""
    run, both, alone = new_run(), Findings(HEADS), Findings(HEADS)
    call = dense_call(run=run)
    Calibration(both, TILES).attend(call)
    positive, negative = (call.only(branch) for branch in call.branches)
    assert Calibration(alone, TILES).why_not(negative) == "the negative prompt"
    Calibration(alone, TILES).attend(positive)
    assert torch.equal(both.layers[0].errors, alone.layers[0].errors)
    assert sum(both.layers[0].calls) == sum(alone.layers[0].calls) == 1


def test_bins_go_by_noise_and_empty_ones_take_the_nearest():
    findings = calibrate(Findings(HEADS, bins=10), sigmas=(1.0, 0.95, 0.55, 0.2))  # 0, 5, 45 and 80 % of the noise
    assert findings.layers[0].calls == [2, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    table = findings.table(0.3)
    assert table.calls[:, 0].tolist() == findings.layers[0].calls
    assert table.errors.isfinite().all()
    for number, nearest in enumerate((0, 0, 0, 4, 4, 4, 4, 8, 8, 8)):
        assert torch.equal(table.errors[number], table.errors[nearest])
    torch.testing.assert_close(table.errors[0, 1], findings.layers[1].errors[0] / 2)


def test_an_even_mass_is_one():
    findings = Findings(HEADS, bins=2)
    call = dense_call(run=new_run())
    Calibration(findings, TILES).attend(replace(call, k=torch.zeros_like(call.k)))
    assert (findings.table(0.5).mass - 1).abs().max() < 1e-3


def test_two_calibrations_are_averaged_by_their_calls():
    first, second = (calibrate(Findings(HEADS, bins=2), sigmas=sigmas) for sigmas in ((1.0, 0.9, 0.3), (0.8,)))
    a, b = first.table(0.4), second.table(0.4)
    both = second.table(0.3, earlier=a)
    assert both.calls.tolist() == [[3, 3], [1, 1]] and both.density == 0.3
    torch.testing.assert_close(both.errors[0], (2 * a.errors[0] + b.errors[0]) / 3)
    torch.testing.assert_close(both.errors[1], a.errors[1], msg="the second saw nothing there")
    torch.testing.assert_close(both.mass, ((3 * a.mass.float() + b.mass.float()) / 4).half(), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("findings", "settings", "said"),
    [
        (Findings(HEADS, bins=3), {}, "other noise bins: 2, now 3"),
        (Findings(HEADS, None, bins=2), {}, "other tails: row, now None"),
        (Findings(FRAMES, bins=2), {}, "other candidates: full, skip"),
        (Findings(HEADS, bins=2), {"layers": 1}, r"other layers: \(0, 1\), now \(0,\)"),
        (Findings(HEADS, bins=2), {"blocks": Blocks("raster", 4)}, "other blocks: tile of side 4, now raster of"),
        (Findings(HEADS, bins=2), {"layout": LONG}, r"other latent grids: \(5, 10, 13\), now \(9, 16, 16\)"),
        (Findings(HEADS, bins=2), {"heads": 2}, "calibrated on family unknown .* 3 heads of 32"),
    ],
)
def test_calibrations_of_different_kinds_are_not_averaged(findings, settings, said):
    earlier = calibrate(Findings(HEADS, bins=2), sigmas=(1.0,), batch=1).table(0.4)
    now = calibrate(findings, sigmas=(1.0,), batch=1, **settings)
    with pytest.raises(ValueError, match=said):
        now.table(0.4, earlier=earlier)


def test_nothing_seen_and_nothing_finite_are_said():
    with pytest.raises(ValueError, match="no attention of the video was seen"):
        Findings(HEADS).table(0.3)
    findings, call = Findings(HEADS), dense_call(run=new_run())
    Calibration(findings, TILES).attend(replace(call, v=call.v * torch.nan))
    with pytest.raises(ValueError, match="are not finite"):
        findings.table(0.3)


def test_reference_frames_are_chosen_by_layer():
    table = calibrate(Findings(FRAMES, bins=3), layers=4).table(0.6)
    assert table.by_layer and (table.choice == table.choice[:1, :, :1]).all()
    assert table.expected()[0] == pytest.approx(0.6, abs=0.1)


def test_other_calls_are_left_alone():
    findings, call = Findings(HEADS), dense_call(run=new_run())
    method = Calibration(findings, TILES)
    method.attend(call)
    assert method.why_not(call) is None
    assert method.why_not(dense_call(LONG, run=new_run())) == "other tokens than the first call had"
    assert "grouped queries" in method.why_not(replace(call, k=call.k[:, :, :1], v=call.v[:, :, :1]))
    assert "between queries" in method.why_not(replace(call, mask=torch.zeros(2, 1, MIXED.tokens, MIXED.tokens)))


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
@pytest.mark.parametrize("name", ["wan_odd", "hunyuan_video_masked", "wan_vace"])
def test_a_calibrated_run_is_the_plain_run(comfy, name):
    from interspatial.models import host
    from interspatial.tests.models.tinies import BY_NAME, sample

    tiny, findings, ticks = BY_NAME[name], Findings(HEADS, bins=4), []
    model, prompts = tiny.model(), (tiny.prompt(1, 5), tiny.prompt(2, 7))
    method = Calibration(findings, Blocks("tile", 2), tick=lambda: ticks.append(1))
    watched = host.attach_attention(model, Card("calibrate", "measure"), method)
    assert torch.equal(sample(watched, tiny, cfg=3.0, prompts=prompts), sample(model, tiny, cfg=3.0, prompts=prompts))
    table = findings.table(0.4, "Name")
    assert table.layers == tuple(sorted(tiny.layers)) and table.network.family == tiny.family
    assert table.calls.sum(0).tolist() == [2] * len(tiny.layers)
    assert len(ticks) >= 2 * len(tiny.layers)
    assert str(table.network).startswith("Name of family")
