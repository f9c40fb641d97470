"""Evenly spaced values: rounding against loops in float64, the channel mask, ranges, feedback, changed weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.kernels import pack_bits
from interspatial.models.quant import uniform
from interspatial.models.quant.format import FORMATS, dense
from interspatial.models.quant.stats import LayerStats
from interspatial.models.quant.vidit_q import ViDiTQ, channel_mask
from interspatial.models.quant.weights_file import as_core

pytestmark = pytest.mark.usefixtures("poisoned")

RTN = FORMATS["rtn"]
# Relative squared error of clipped even values on a normal distribution; 8 bits: of 254 steps over +- 4.5 deviations.
CLIPPED = {4: 0.0119, 6: 0.0012, 8: 1.1e-4}


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed + columns)
    return torch.randn(rows, columns, generator=draw) * torch.linspace(0.02, 2, rows)[:, None]


def error(coded, weight: torch.Tensor) -> float:
    return float((dense(coded).double() - weight.double()).square().sum() / weight.double().square().sum())


def stats_of(x: torch.Tensor, gram: bool = False) -> LayerStats:
    return LayerStats(x.abs().amax(0)[None], x.square().mean(0)[None], x.t() @ x / len(x) if gram else None)


def naive_row(row: list[float], bits: int) -> list[float]:
    """Min-max rounding with 0 in the range, in Python's float64."""
    if bits == 8:
        step = max(max(map(abs, row)), 1e-12) / 127
        return [round(w / step) * step for w in row]
    low, high = min(0.0, *row), max(0.0, *row)
    step = max((high - low) / (2**bits - 1), 1e-12)
    zero = round(-low / step)
    return [(min(max(round(w / step) + zero, 0), 2**bits - 1) - zero) * step for w in row]


@pytest.mark.parametrize("bits", RTN.widths)
@pytest.mark.parametrize("columns", [24, 256])
def test_min_max_rounding_is_the_loop(bits, columns):
    weight = drawn(9, columns)
    weight[1], weight[2], weight[3] = 0, weight[2].abs() + 0.1, -weight[3].abs()
    want = torch.tensor([naive_row(row, bits) for row in weight.double().tolist()], dtype=torch.float64)
    found = dense(RTN.encode(weight, bits)).double()
    step = RTN.encode(weight, bits).scale.double()
    off = (found - want).abs() / step  # a value half way between two may go either way in float32
    assert (off < 1.01).all()
    assert (off > 1e-3).double().mean() < 0.01
    assert torch.equal(found[1], torch.zeros(columns, dtype=torch.float64))


@pytest.mark.parametrize("bits", ViDiTQ.widths)
@pytest.mark.parametrize("columns", [48, 320, 1536])
def test_rotated_rows_err_as_clipped_normal_ones(bits, columns):
    weight = drawn(24, columns)
    weight[:, 3] *= 4  # an outlier channel, which the rotation spreads
    coded = FORMATS["vidit_q"].encode(weight, bits)
    assert coded.basis.block == {48: 16, 320: 64, 1536: 256}[columns]
    assert error(coded, weight) < 1.05 * CLIPPED[bits]


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_searched_ranges_never_err_more(bits):
    rows = drawn(12, 512)
    rows[:, 0] *= 9
    plain, searched = uniform.ranges(rows, bits), uniform.best_ranges(rows, bits)
    lost = [((uniform._on_grid(rows, *pair, bits) - rows) ** 2).sum(1) for pair in (plain, searched)]
    assert (lost[1] <= lost[0]).all()
    assert lost[1].sum() < 0.9 * lost[0].sum() or bits == 6


@pytest.mark.parametrize("name", ["rtn", "vidit_q"])
def test_sizes_and_shapes_are_known_before(name):
    form, stats = FORMATS[name], stats_of(drawn(40, 64), True)
    for bits in form.widths:
        for weight in (drawn(7, 64), torch.zeros(7, 64)):
            for known in (None, stats):
                coded = form.encode(weight, bits, known)
                assert coded.nbytes == form.size((7, 64), bits, known)
                assert form.why_not_table(coded) is None
                numbers, scale = form.integers(coded)
                assert numbers.dtype == torch.int8
                assert torch.equal(coded.basis.original(numbers * scale), dense(coded))


def test_codes_lie_packed():
    coded = RTN.encode(drawn(5, 40), 3)
    codes = pack_bits.unpack(coded.codes, 3, 40)
    assert torch.equal(codes.to(torch.int8) - coded.table.to(torch.int8), RTN.integers(coded)[0])


def test_the_mask_is_the_balance_of_peaks():
    weight, peaks, alpha = drawn(6, 32), torch.rand(32, generator=torch.Generator().manual_seed(1)) * 9 + 0.1, 0.5665
    peaks[4], weight[:, 7] = 0, 0
    mask = channel_mask(weight, peaks, alpha).double()
    for j in range(1, 32):  # only the ratios of channels matter
        loud = [max(float(peaks[i]), 1e-3) for i in (0, j)]
        heavy = [max(float(weight[:, i].abs().max()), 1e-5) for i in (0, j)]
        want = (heavy[0] / heavy[1]) ** alpha * (loud[1] / loud[0]) ** (1 - alpha)
        assert float(mask[0] / mask[j]) == pytest.approx(want, rel=1e-5)
    assert float(mask.log().mean()) == pytest.approx(0, abs=1e-6)


def test_the_mask_divides_out_what_stays_loud():
    """4-bit weights and activations; two channels 200 times as loud as the others."""
    draw = torch.Generator().manual_seed(2)
    x, weight = torch.randn(400, 1024, generator=draw), torch.randn(64, 1024, generator=draw)
    x[:, [5, 700]] *= 200
    want, errors = x @ weight.t(), {}
    for label, known in (("rotated", None), ("masked", stats_of(x))):
        coded = ViDiTQ(alpha=0.5).encode(weight, 4, known)
        rows = coded.basis.activation(x)
        step = rows.abs().amax(1, keepdim=True) / 7
        out = (rows / step).round() * step @ coded.basis.weight(dense(coded)).t()
        errors[label] = float((out - want).square().sum() / want.square().sum())
    assert errors["masked"] < 0.1 * errors["rotated"]


def test_8_bits_without_a_mask_are_core_s_own():
    assert as_core(ViDiTQ().encode(drawn(4, 64), 8))
    assert not as_core(ViDiTQ().encode(drawn(4, 64), 8, stats_of(drawn(40, 64))))
    assert not as_core(ViDiTQ().encode(drawn(4, 64), 4))


@pytest.mark.parametrize("bits", ViDiTQ.widths)
def test_errors_are_fed_back_where_the_gram_was_kept(bits):
    draw = torch.Generator().manual_seed(bits)
    mix = torch.randn(128, 128, generator=draw) * torch.rand(128, generator=draw) ** 4
    x = torch.randn(2000, 128, generator=draw) @ mix
    weight, stats = drawn(32, 128), stats_of(x, True)
    fed, plain = (ViDiTQ().encode(weight, bits, known) for known in (stats, replace(stats, gram=None)))
    lost = [float(((dense(coded) - weight) @ x.t()).square().sum()) for coded in (fed, plain)]
    assert lost[0] < 0.6 * lost[1]
    assert torch.equal(fed.scale, plain.scale)
    assert torch.equal(ViDiTQ(feedback=False).encode(weight, bits, stats).codes, plain.codes)


@pytest.mark.parametrize("bits", ViDiTQ.widths)
def test_rows_are_coded_in_parts(bits, monkeypatch):
    weight, stats = drawn(30, 64), stats_of(drawn(200, 64), True)
    whole = ViDiTQ().encode(weight, bits, stats).tensors()
    monkeypatch.setattr(uniform, "AT_ONCE", 7 * 64)
    parts = ViDiTQ().encode(weight, bits, stats).tensors()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("name", ["rtn", "vidit_q"])
def test_a_weight_that_has_not_changed_comes_back_bit_for_bit(name):
    form, stats = FORMATS[name], stats_of(drawn(50, 256), True)
    for bits in form.widths:
        coded = form.encode(drawn(10, 256), bits, stats)
        for seed in (0, 5):
            again = form.recode(coded, dense(coded), seed)
            assert torch.equal(dense(again), dense(coded))


@pytest.mark.parametrize("bits", [4, 8])
def test_small_changes_survive_on_average(bits):
    form, weight = FORMATS["rtn"], drawn(6, 256)
    coded = form.encode(weight, bits)
    inside = (dense(coded) > dense(coded).amin(1, keepdim=True)) & (dense(coded) < dense(coded).amax(1, keepdim=True))
    target = dense(coded) + 0.1 * coded.scale * inside
    mean = torch.stack([dense(form.recode(coded, target, seed)) for seed in range(1, 201)]).mean(0)
    off = ((mean - target) / coded.scale)[inside]
    assert off.abs().mean() < 0.03  # of a step; rounded to the nearest: 0.1
    assert off.mean().abs() < 0.005


def test_refusals_are_sentences():
    assert ViDiTQ().why_not((8, 24), 4).startswith("its 24 inputs are no multiple of 16")
    assert "no whole bytes" in RTN.why_not((8, 20), 3)
    coded = RTN.encode(drawn(4, 32), 4)
    assert "no uint8 of one per row" in RTN.why_not_table(replace(coded, table=coded.table[:2]))
    assert "no zero point" in RTN.why_not_table(replace(RTN.encode(drawn(4, 32), 8), table=coded.table))
