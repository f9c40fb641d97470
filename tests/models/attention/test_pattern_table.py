"""The table of a calibration: what is chosen for a density, other grids and models, files that are whole or refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from interspatial.models.attention import pattern_file
from interspatial.models.attention.pattern_choice import choose, mean_price
from interspatial.models.attention.pattern_file import DTYPES, MARK, read_table, write_table
from interspatial.models.attention.pattern_table import Network, bin_of
from interspatial.models.attention.patterns import FRAMES, HEADS
from interspatial.tests.models.attention.pattern_tables import table_of
from safetensors import safe_open
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("poisoned")

PRICES = torch.tensor([1.0, 0.05, 0.2, 0.2, 0.4])


@pytest.fixture(scope="module")
def table():
    return table_of()


def errors(*shape: int, seed: int = 0) -> torch.Tensor:
    """Of the patterns of PRICES: 0 for the first, else random and on the whole smaller where more is paid."""
    found = torch.rand(*shape, len(PRICES), generator=torch.Generator().manual_seed(seed)) * (1 - PRICES)
    found[..., 0] = 0
    return found


def by_bound(found: torch.Tensor, bound: float) -> torch.Tensor:
    """The rule by loops: the least price within the bound, then the least error."""
    rows = found.flatten(0, -2).tolist()
    best = [min((p for p in range(5) if row[p] <= bound), key=lambda p: (PRICES[p].item(), row[p])) for row in rows]
    return torch.tensor(best, dtype=torch.int8).view(found.shape[:-1])


@pytest.mark.parametrize("density", [0.1, 0.2, 0.35, 0.6, 0.9])
def test_the_choice_is_the_best_of_all_bounds(density):
    found, weights = errors(2, 3, 4), torch.tensor([1.0, 3.0])
    got = choose(found, PRICES, density, weights)
    every = [by_bound(found, bound) for bound in found.flatten().tolist()]
    assert any(torch.equal(got, choice) for choice in every)
    nearest = min(abs(mean_price(choice, PRICES, weights) - density) for choice in every)
    assert abs(mean_price(got, PRICES, weights) - density) == pytest.approx(nearest, abs=1e-6)


def test_the_density_is_met_to_half_a_head():
    """1200 heads and bins: no pattern costs more than 0.6 less than another that a bound chooses next."""
    found, weights = errors(10, 12, 10), torch.ones(10)
    for density in (0.1, 0.3, 0.5, 0.7):
        price = mean_price(choose(found, PRICES, density, weights), PRICES, weights)
        assert abs(price - density) <= 0.95 / 2 / 1200 + 1e-6


@pytest.mark.parametrize(("density", "pattern"), [(1.0, 0), (0.0, 1)])
def test_the_ends_are_dense_and_the_cheapest(density, pattern):
    assert (choose(errors(2, 3, 4), PRICES, density, torch.ones(2)) == pattern).all()


def test_bins_that_a_run_does_not_visit_do_not_count():
    found = errors(2, 8, 8)
    got = choose(found, PRICES, 0.3, torch.tensor([0.0, 1.0]))
    assert float(PRICES[got[1].long()].mean()) == pytest.approx(0.3, abs=0.01)
    assert float(PRICES[got[0].long()].mean()) != pytest.approx(0.3, abs=0.001)


def test_layers_are_chosen_as_a_whole():
    found, weights = errors(4, 30, 3), torch.tensor([1.0, 2.0, 0.0, 1.0])
    got = choose(found, PRICES, 0.3, weights, by_layer=True)
    assert got.shape == (4, 30, 3) and (got == got[:1, :, :1]).all()
    assert mean_price(got, PRICES, weights) == pytest.approx(0.3, abs=0.02)
    mean = (found * (weights / 4)[:, None, None, None]).sum(0).mean(1)  # L P
    chosen = got[0, :, 0].long()
    bound = mean.gather(1, chosen[:, None]).max()
    for layer in range(30):
        within = [p for p in range(5) if mean[layer, p] <= bound]
        assert PRICES[chosen[layer]] == min(PRICES[p] for p in within)


def test_a_run_without_errors_takes_the_cheapest():
    assert (choose(torch.zeros(2, 2, 2, 5), PRICES, 0.3, torch.ones(2)) == 1).all()


def test_bins_are_even_parts():
    assert [bin_of(p, 4) for p in (0.0, 0.2499, 0.25, 0.5 - 1e-9, 0.99, 1.0)] == [0, 0, 1, 2, 3, 3]


def test_another_density_is_another_choice(table):
    less = table.chosen(0.2)
    assert less.errors is table.errors and less.density == 0.2
    assert less.expected()[0] < table.expected()[0] and less.expected()[1] > table.expected()[1] > 0
    assert table.expected()[0] == pytest.approx(0.4, abs=0.03)


def test_another_model_is_refused_naming_both(table):
    assert table.why_not(table.network) is None
    assert table.why_not(replace(table.network, class_name="WanModel")) is None
    said = table.why_not(Network("wan", 40, 12, 128, "WanModel"))
    assert said == (
        "the sparse pattern was calibrated on family unknown (0 layers, 3 heads of 32), and this model is WanModel of "
        "family wan (40 layers, 12 heads of 128)"
    )


def test_stripes_of_another_grid_are_those_of_the_nearest_place(table):
    assert torch.equal(table.mass_at(table.centres), table.mass)
    moved = (table.centres + 0.01).clamp(max=1)[[3, 59]]
    assert torch.equal(table.mass_at(moved), table.mass[..., [3, 59]])


@pytest.mark.parametrize("patterns", [None, FRAMES], ids=["heads", "frames"])
def test_a_file_keeps_everything(tmp_path, table, patterns):
    table = table if patterns is None else table_of(patterns=patterns)
    table = replace(table, network=replace(table.network, class_name="WanModel"), tail=None)
    write_table(table, tmp_path / "new" / "a.safetensors")
    again = read_table(tmp_path / "new" / "a.safetensors")
    for field in fields(table):
        before, after = getattr(table, field.name), getattr(again, field.name)
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after, field.name
    assert again.network.class_name == "WanModel"
    assert again.by_layer == (patterns is not None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("failing", ["save_file", "replace"])
def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, table, monkeypatch, failing):
    path = tmp_path / "a.safetensors"
    write_table(table, path)
    before = path.read_bytes()

    def fail(*arguments):
        if failing == "save_file":
            arguments[1].write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pattern_file if failing == "save_file" else pattern_file.os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(table.chosen(0.2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def parts(tmp_path, table):
    """A whole file's tensors and what its metadata say, and a function that writes them."""
    path = tmp_path / "a.safetensors"
    write_table(table, path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in DTYPES}
        about = json.loads(file.metadata()[MARK])

    def rewrite():
        save_file(tensors, path, {MARK: json.dumps(about)})
        return path

    return tensors, about, rewrite


def refused(path) -> str:
    with pytest.raises(ValueError, match=r"^The sparse pattern .* cannot be used: .* calibrate again, or") as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.6, 0.999])
def test_a_truncated_file_is_refused(tmp_path, table, share):
    path = tmp_path / "a.safetensors"
    write_table(table, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


def test_files_of_another_kind_are_refused(tmp_path):
    refused(tmp_path / "missing.safetensors")
    path = tmp_path / "b.safetensors"
    path.write_bytes(b"not safetensors at all" * 40)
    refused(path)
    save_file({"weight": torch.zeros(3)}, path)
    assert "holds no sparse pattern" in refused(path)
    for mark in ("", "{", "[1]", "7", '{"version": 1}', '{"version": 1, "network": 3, "blocks": {}}'):
        save_file({"weight": torch.zeros(3)}, path, {MARK: mark})
        refused(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 99, "version 99, this pack reads version 1"),
        ("blocks", {"order": "spiral", "side": 2}, "order is 'spiral'"),
        ("blocks", {"order": "tile", "side": "two"}, "block side is two"),
        ("tail", "fox", "tail is 'fox'"),
        ("layers", [0], r"its choice are int8"),
        ("grid", [3, 4], "grid is"),
        ("patterns", [{"kind": "skip", "amount": 0.0}] * len(HEADS), "first pattern is not full"),
        ("patterns", [{"kind": "fox", "amount": 0.0}] * len(HEADS), "no attention pattern 'fox'"),
        ("density", "much", "could not convert"),
        ("network", {"family": "wan"}, "missing"),
    ],
)
def test_metadata_that_is_wrong_is_named(parts, key, value, said):
    _, about, rewrite = parts
    about[key] = value
    assert said in refused(rewrite())


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("errors", lambda x: x[..., :3].contiguous(), "its errors are float32"),
        ("errors", lambda x: x * torch.nan, "its errors are not finite"),
        ("errors", lambda x: x.half(), "float32 [3, 2, 3, 14] belong"),
        ("choice", lambda x: x + 20, "chooses patterns from"),
        ("choice", lambda x: x - 20, "chooses patterns from"),
        ("choice", lambda x: x[:0].contiguous(), "its choice are int8 [0,"),
        ("choice", lambda x: x.flatten()[0].clone(), "cannot be used"),
        ("mass", lambda x: x[:, :, :5].contiguous(), "its mass are float16"),
        ("centres", lambda x: x[:, :2].contiguous(), "its centres are"),
        ("calls", lambda x: x * 0, "rests on no attention call"),
        ("prices", lambda x: None, "tensor prices"),
    ],
)
def test_tensors_that_are_wrong_are_named(parts, name, spoil, said):
    tensors, _, rewrite = parts
    changed = spoil(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    assert said in refused(rewrite())
