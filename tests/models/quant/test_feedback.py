"""Error feedback against a loop that inverts what is left of the gram for every group, and against the optimum."""

from __future__ import annotations

import itertools

import pytest
import torch
from interspatial.models.quant import feedback
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.feedback import carries, carry_in, fed_back, feed, gram_in
from interspatial.models.quant.stats import LayerStats

pytestmark = pytest.mark.usefixtures("poisoned")

STEP = 0.5


def to_step(columns: torch.Tensor, start: int = 0) -> torch.Tensor:
    return (columns / STEP).round() * STEP


def problem(rows: int, columns: int, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [N, K], and the gram of activations whose channels go together."""
    draw = torch.Generator().manual_seed(rows + columns)
    mix = torch.randn(columns, columns, generator=draw) * torch.linspace(-spread, spread, columns).exp()[:, None]
    x = torch.randn(4 * columns, columns, generator=draw) @ mix
    return torch.randn(rows, columns, generator=draw), x.t() @ x / len(x)


def lost(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> float:
    """Squared error of the outputs."""
    error = (weight - rounded).double()
    return float(((error @ gram.double()) * error).sum())


def naive(weight, gram, group, damp=0.01):
    """Round a group; move the rest to where the error of the outputs is least, given what is rounded."""
    gram = gram.double() + damp * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    left = weight.double().clone()
    for i in range(0, len(gram), group):
        j = i + group
        error = left[:, i:j] - to_step(left[:, i:j])
        left[:, i:j] -= error
        if j < len(gram):
            left[:, j:] += error @ gram[i:j, j:] @ torch.linalg.inv(gram[j:, j:])
    return left


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("columns", [4, 40, 76])
def test_it_is_the_loop_that_solves_for_the_rest(columns, group, monkeypatch):
    monkeypatch.setattr(feedback, "SPAN", 16)  # several spans, and one that is cut short
    weight, gram = problem(9, columns)
    found = fed_back(weight, gram, to_step, group)
    assert found.dtype == torch.float32
    assert (found.double() - naive(weight, gram, group)).abs().max() < 1e-6


@pytest.mark.parametrize("group", [1, 5])
def test_channels_apart_round_as_ever(group):
    weight = problem(7, 130)[0]
    power = torch.rand(130, generator=torch.Generator().manual_seed(0)) * 9
    assert torch.equal(fed_back(weight, torch.diag(power), to_step, group), to_step(weight))


@pytest.mark.parametrize("group", [1, 4])
def test_outputs_err_less(group):
    weight, gram = problem(32, 320)
    plain, fed = (lost(weight, x, gram) for x in (to_step(weight), fed_back(weight, gram, to_step, group)))
    assert fed < 0.5 * plain


def test_it_comes_near_the_best_of_all_roundings():
    draw = torch.Generator().manual_seed(3)
    levels = torch.tensor(list(itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=3)))
    plain = fed = best = 0.0
    for _ in range(25):
        x = torch.randn(12, 3, generator=draw) @ torch.randn(3, 3, generator=draw)
        weight, gram = torch.rand(1, 3, generator=draw) - 0.5, x.t() @ x
        least = min(lost(weight, level[None], gram) for level in levels)
        for_plain, for_fed = (lost(weight, y, gram) for y in (to_step(weight), fed_back(weight, gram, to_step)))
        assert min(for_plain, for_fed) >= least - 1e-9
        plain, fed, best = plain + for_plain, fed + for_fed, best + least
    assert best < fed < best + 0.5 * (plain - best)


def test_the_level_of_the_gram_does_not_matter():
    weight, gram = problem(5, 48)
    for level in (1e-12, 1e9):
        assert torch.equal(fed_back(weight, gram * level, to_step), fed_back(weight, gram, to_step))


def test_inputs_that_never_move():
    """Channels without activations, more channels than tokens, and no activations at all."""
    weight, gram = problem(5, 48)
    gram[:, 3], gram[3], gram[:, 40:], gram[40:] = 0, 0, 0, 0
    found = fed_back(weight, gram, to_step)
    assert torch.equal(found[:, [3, *range(40, 48)]], to_step(weight)[:, [3, *range(40, 48)]])
    few = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    assert fed_back(weight, few.t() @ few, to_step).isfinite().all()
    assert torch.equal(fed_back(weight, torch.zeros(48, 48), to_step), to_step(weight))


def test_rows_do_not_touch_each_other():
    weight, gram = problem(6, 64)
    carry = carries(gram)
    whole = feed(weight, carry, to_step)
    parts = torch.cat([feed(part, carry, to_step) for part in weight.split(2)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("block", [1, 16, 64])
def test_the_gram_goes_into_the_basis_with_the_activations(block):
    draw = torch.Generator().manual_seed(block)
    order = torch.randperm(64, generator=draw).int()
    turns = torch.linalg.qr(torch.randn(4, 16, 16, generator=draw)).Q
    basis = Basis(block, torch.rand(64, generator=draw) + 0.5, turns, order)
    x = torch.randn(200, 64, generator=draw)
    y = basis.activation(x.double())
    want = y.t() @ y
    assert (gram_in(basis, x.t() @ x).double() - want).norm() < 1e-5 * want.norm()


def test_there_is_no_carry_without_a_gram():
    power = torch.ones(1, 32)
    assert carry_in(Basis(16), None, power.device) is None
    assert carry_in(Basis(16), LayerStats(power, power), power.device) is None
    assert carry_in(Basis(16), LayerStats(power, power, torch.eye(32)), power.device).shape == (32, 32)


def test_bad_grams_are_named():
    weight, gram = problem(3, 16)
    with pytest.raises(ValueError, match=r"gram of \[8, 8\]"):
        fed_back(weight, gram[:8, :8], to_step)
    with pytest.raises(ValueError, match="groups of 3"):
        fed_back(weight, gram, to_step, 3)
    gram[2, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        fed_back(weight, gram, to_step)
