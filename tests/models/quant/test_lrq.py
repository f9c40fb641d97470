"""Look-up tables: errors on known distributions, whole tables, sizes, rotations by salience, and changed weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.quant import lrq
from interspatial.models.quant.format import FORMATS, Coded, dense
from interspatial.models.quant.lrq import CODEBOOKS, LRQ
from interspatial.models.quant.stats import LayerStats
from torch.distributions import Laplace, Normal, StudentT

pytestmark = pytest.mark.usefixtures("poisoned")

KINDS = {"normal": Normal(0.0, 1.0), "laplace": Laplace(0.0, 1.0), "student": StudentT(torch.tensor(4.0))}
# Relative squared error that each table has on each distribution, by bits, as measured apart from this code.
LLOYD = {"normal": {3: 0.0349, 4: 0.0096}, "laplace": {3: 0.0543, 4: 0.0158}, "student": {3: 0.0754, 4: 0.0230}}
TWIN = {"normal": {3: 0.0476, 4: 0.0112}, "laplace": {3: 0.0701, 4: 0.0177}, "student": {3: 0.0968, 4: 0.0230}}
FIXED = {2: 0.1185, 3: 0.0349, 4: 0.0096}


def drawn(kind: str, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return KINDS[kind].sample((rows, columns)) * torch.linspace(0.01, 3, rows)[:, None]


def error(coded: Coded, weight: torch.Tensor) -> float:
    """Relative squared error in the original basis."""
    weight = weight.double()
    return float((dense(coded).double() - weight).square().sum() / weight.square().sum())


def stats_of(x: torch.Tensor, gram: bool = False) -> LayerStats:
    power = x.square().mean(0)[None]
    return LayerStats(x.abs().amax(0)[None], power, x.t() @ x / len(x) if gram else None)


def activations(columns: int, outliers: int = 0, factor: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(columns)
    x = torch.randn(512, columns, generator=draw)
    x[:, torch.randperm(columns, generator=draw)[:outliers]] *= factor
    return x


@pytest.mark.parametrize("bits", FIXED)
def test_the_fixed_table_on_normal_rows(bits):
    weight = drawn("normal", 64, 4096)
    found = error(LRQ(codebook="gauss", rotation="none").encode(weight, bits), weight)
    assert found == pytest.approx(FIXED[bits], rel=0.02)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_on_unrotated_rows(kind, bits):
    weight = drawn(kind, 24, 2048)
    for codebook, table in (("lloyd", LLOYD), ("tlq", TWIN)):
        found = error(LRQ(codebook=codebook, rotation="none").encode(weight, bits), weight)
        assert found < 1.05 * table[kind][bits], codebook


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("codebook", ["lloyd", "gauss"])
@pytest.mark.parametrize("kind", KINDS)
def test_rotated_rows_err_as_normal_ones(kind, codebook, bits):
    weight = drawn(kind, 48, 1536)
    assert error(LRQ(codebook=codebook).encode(weight, bits), weight) < 1.05 * FIXED[bits]


@pytest.mark.parametrize("columns", [48, 192, 320])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ragged_rows(columns, bits):
    weight = drawn("normal", 37, columns)
    coded = LRQ().encode(weight, bits)
    assert coded.basis.block == {48: 16, 192: 64, 320: 64}[columns]
    assert error(coded, weight) < 1.05 * FIXED[bits]


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_int8_products_multiply_what_is_stored(codebook, bits):
    weight = drawn("laplace", 9, 256)
    coded = LRQ(codebook=codebook).encode(weight, bits)
    numbers, scale = FORMATS["lrq"].integers(coded)
    assert numbers.dtype == torch.int8 and coded.table.dtype == torch.int8
    assert torch.equal(numbers.float(), FORMATS["lrq"].values(coded))
    assert torch.equal(coded.basis.original(numbers * scale), dense(coded))
    assert (coded.table.int().diff() >= 0).all()  # ascending, as changed weights need them
    assert coded.table.int().abs().amax(-1).eq(127).all()


@pytest.mark.parametrize("rotation", ["adaptive", "hadamard", "outlier", "duquant", "none"])
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_the_size_is_known_before(codebook, rotation):
    x = activations(128, 2, 100.0)
    for form, stats in ((LRQ(codebook, rotation), stats_of(x)), (LRQ(codebook, rotation), stats_of(x, True))):
        coded = form.encode(drawn("normal", 20, 128), 3, stats)
        assert coded.nbytes == form.size((20, 128), 3, stats)
        assert form.why_not_table(coded) is None


@pytest.mark.parametrize("bits, share", [(2, 0.16), (3, 0.23), (4, 0.30)])
def test_layers_of_few_inputs_stay_small(bits, share):
    for shape in ((256, 256), (1024, 256), (256, 1024), (5120, 13824)):
        assert max(LRQ(codebook).size(shape, bits) for codebook in CODEBOOKS) <= share * 2 * shape[0] * shape[1]


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("weight", [torch.zeros(6, 64), torch.ones(6, 64), drawn("student", 6, 64), -torch.rand(6, 64)])
def test_tensors_have_the_same_shapes_whatever_is_in_them(codebook, weight):
    coded = LRQ(codebook, "none").encode(weight, 3)
    shapes = {name: tuple(x.shape) for name, x in coded.tensors().items()}
    assert shapes == {"": (6, 24), "_scale": (6, 1), "_table": (8,) if codebook == "gauss" else (6, 8)}
    assert dense(coded).isfinite().all()


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_rows_and_columns_of_zeros(codebook):
    weight = drawn("normal", 6, 64)
    weight[2], weight[:, 10] = 0, 0
    coded = LRQ(codebook).encode(weight, 4)
    found = dense(coded)
    assert torch.equal(found[2], torch.zeros(64))
    assert error(coded, weight) < 0.02


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_tiny_and_huge_weights(codebook, scale):
    weight = drawn("normal", 4, 256) * scale
    assert error(LRQ(codebook).encode(weight, 4), weight) < 0.02


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_format_takes_what_is_not_finite(name, bad):
    weight = drawn("normal", 6, 64)
    weight[3, 5] = bad
    form = FORMATS[name]
    for stats in (None, stats_of(activations(64), True)):
        with pytest.raises(ValueError, match="not finite"):
            form.encode(weight, form.widths[-1], stats)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_weights_are_taken_for_what_they_are(name, dtype):
    weight = drawn("normal", 8, 64).to(dtype)
    form = FORMATS[name]
    stats = stats_of(activations(64), True)
    for bits in form.widths:
        once, again, wide = (form.encode(x, bits, stats).tensors() for x in (weight, weight, weight.float()))
        assert all(torch.equal(x, again[key]) and torch.equal(x, wide[key]) for key, x in once.items())


def test_rows_are_coded_in_parts(monkeypatch):
    weight, stats = drawn("laplace", 30, 64), stats_of(activations(64, 1, 90.0), True)
    for form in (LRQ(), LRQ("gauss"), LRQ("tlq")):
        whole_one = form.encode(weight, 3, stats)
        other = form.recode(whole_one, weight)
        monkeypatch.setattr(lrq, "AT_ONCE", 7 * 64)
        assert {k: x.tolist() for k, x in form.encode(weight, 3, stats).tensors().items()} == {
            k: x.tolist() for k, x in whole_one.tensors().items()
        }
        assert torch.equal(form.recode(whole_one, weight).codes, other.codes)
        monkeypatch.undo()


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_weight_that_has_not_changed_comes_back_bit_for_bit(codebook, bits):
    form, weight = LRQ(codebook), drawn("student", 12, 256)
    weight[5] = 0
    coded = form.encode(weight, bits, stats_of(activations(256, 3, 200.0)))
    assert coded.basis.order is not None
    for seed in (0, 7):
        again = form.recode(coded, dense(coded), seed)
        assert torch.equal(dense(again), dense(coded))
        assert torch.equal(again.scale, coded.scale)
    rounded = form.recode(coded, dense(coded).bfloat16())
    assert torch.equal(dense(rounded), dense(coded))


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_small_changes_survive_on_average(codebook):
    form, weight = LRQ(codebook, "none"), drawn("normal", 6, 256)
    weight = weight.clamp(-2.0 * weight.std(1, keepdim=True), 2.0 * weight.std(1, keepdim=True))
    coded = form.encode(weight, 4)
    target = dense(coded) + 0.02 * weight.std(1, keepdim=True) * torch.randn(6, 256)
    outer = coded.table.float().amax(-1).reshape(-1, 1) * coded.scale
    inside = target.abs() < 0.98 * outer
    mean = torch.stack([dense(form.recode(coded, target, seed)) for seed in range(1, 201)]).mean(0)
    plain = dense(form.recode(coded, target))
    assert ((mean - target)[inside].norm() < 0.35 * (plain - target)[inside].norm()).item()
    assert torch.equal(dense(form.recode(coded, target, 3)), dense(form.recode(coded, target, 3)))
    assert not torch.equal(dense(form.recode(coded, target, 3)), dense(form.recode(coded, target, 4)))


def test_rows_that_grow_and_rows_that_were_nothing():
    """As a strong LoRA leaves them."""
    form, weight = LRQ(), drawn("normal", 6, 256)
    weight[2] = 0
    coded = form.encode(weight, 4)
    other = 5 * drawn("normal", 6, 256, seed=9)
    assert error(form.recode(coded, other), other) < 0.03
    assert {k: x.shape for k, x in form.recode(coded, other).tensors().items()} == {
        k: x.shape for k, x in coded.tensors().items()
    }


def test_salient_layers_get_a_mask_and_an_order():
    mild, salient = stats_of(activations(256, 3, 4.0)), stats_of(activations(256, 3, 100.0))
    weight = drawn("normal", 16, 256)
    for stats, plain in ((None, True), (mild, True), (salient, False)):
        assert LRQ().encode(weight, 3, stats).basis.plain == plain
    loud, soft = stats_of(2 * activations(256)), stats_of(0.1 * activations(256, 3, 50.0))
    assert not LRQ(by_size=True).encode(weight, 3, loud).basis.plain
    assert LRQ(by_size=True).encode(weight, 3, soft).basis.plain


@pytest.mark.parametrize("rotation", ["outlier", "duquant", "none"])
def test_every_rotation_comes_back(rotation):
    weight, stats = drawn("normal", 24, 384), stats_of(activations(384), True)
    assert error(LRQ(rotation=rotation, feedback=False).encode(weight, 4, stats), weight) < 1.05 * FIXED[4]


def test_the_order_and_the_mask_save_rounded_activations():
    """4 bits on both sides: outputs of a layer with few very loud channels."""
    x, weight = activations(256, 1, 200.0), drawn("normal", 64, 256)
    stats, want = stats_of(x), x @ weight.t()
    errors = {}
    for rotation in ("none", "hadamard", "outlier", "duquant"):
        coded = LRQ(rotation=rotation).encode(weight, 4, stats)
        rows = coded.basis.activation(x)
        step = rows.abs().amax(1, keepdim=True) / 7
        out = (rows / step).round() * step @ (FORMATS["lrq"].values(coded) * coded.scale).t()
        errors[rotation] = float((out - want).square().sum() / want.square().sum())
    assert errors["outlier"] < 0.1 * min(errors["none"], errors["hadamard"])
    assert errors["duquant"] < 0.1 * min(errors["none"], errors["hadamard"])


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_errors_are_fed_back_where_the_gram_was_kept(codebook):
    draw = torch.Generator().manual_seed(4)
    mix = torch.randn(128, 128, generator=draw) * torch.rand(128, generator=draw) ** 4
    x = torch.randn(2000, 128, generator=draw) @ mix
    weight, stats = drawn("normal", 32, 128), stats_of(x, True)
    form = LRQ(codebook)
    fed, plain = (form.encode(weight, 3, each) for each in (stats, replace(stats, gram=None)))
    lost = [float(((dense(coded) - weight) @ x.t()).square().sum()) for coded in (fed, plain)]
    assert lost[0] < 0.6 * lost[1]
    assert torch.equal(replace(form, feedback=False).encode(weight, 3, stats).codes, plain.codes)
    assert torch.equal(fed.table, plain.table) and torch.equal(fed.scale, plain.scale)


def test_refusals_are_sentences():
    assert LRQ().why_not((8, 24), 3).startswith("its 24 inputs are no multiple of 16")
    assert LRQ().why_not((8, 48), 3) is None
    assert "no codes of 5 bits" in LRQ().why_not((8, 48), 5)
    with pytest.raises(ValueError, match="needs to know the layer's activations"):
        LRQ(rotation="outlier").encode(torch.ones(4, 32), 3)
    with pytest.raises(ValueError, match=r"no codebook 'nf4'\. Accepted: lloyd, gauss, tlq"):
        LRQ(codebook="nf4")
    with pytest.raises(ValueError, match="no rotation 'full'"):
        LRQ(rotation="full")
    coded = LRQ().encode(drawn("normal", 4, 32), 3)
    assert "not there" in LRQ().why_not_table(replace(coded, table=None))
    assert "not int8" in LRQ().why_not_table(replace(coded, table=coded.table.float()))
    assert "not one of 8 levels" in LRQ().why_not_table(replace(coded, table=coded.table[:, :7]))
