"""Bits within a budget: held against every possible plan on small problems."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from interspatial.models.quant import allocate
from interspatial.models.quant.allocate import Problem

EVEN = (1.0, 1.0, 1.0)


def problem(layers: int, options: int, seed: int, metrics: int = 3) -> Problem:
    """Layers of unequal size and sensitivity; errors fall by a factor of about 4 a bit, each metric in its own way."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (layers, 1), generator=draw) * 1000
    bits = torch.arange(2, 2 + options)
    nbytes = sizes * bits + torch.randint(0, 300, (layers, options), generator=draw)
    strength = torch.rand(layers, 1, metrics, generator=draw, dtype=torch.float64) ** 4
    noise = 0.5 + torch.rand(layers, options, metrics, generator=draw, dtype=torch.float64)
    errors = strength * noise * 4.0 ** -bits[None, :, None].double()
    return Problem(nbytes, errors, torch.ones_like(nbytes, dtype=torch.bool))


def every_plan(given: Problem, budget: int):
    """All plans that fit, [L] each."""
    layers, options = given.nbytes.shape
    for chosen in product(range(options), repeat=layers):
        chosen = torch.tensor(chosen)
        if bool(given.allowed.gather(1, chosen[:, None]).all()) and given.bytes_of(chosen) <= budget:
            yield chosen


@pytest.mark.parametrize("seed", range(12))
def test_nearly_the_optimum_of_all_plans(seed):
    given = problem(6, 4, seed)
    weights = given.even(EVEN)
    budget = int(given.nbytes.sum(0)[seed % 3] * 1.07)
    found = allocate.cheapest(given, budget, weights)
    best = min(float(given.total(chosen) @ weights) for chosen in every_plan(given, budget))
    assert given.bytes_of(found) <= budget
    assert best <= float(given.total(found) @ weights) * (1 + 1e-12) <= 1.03 * best


def test_exact_where_the_budget_is_on_the_hull():
    """With equal sizes and errors of one law, the layers are served in the order of their strength."""
    strength = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0], dtype=torch.float64)
    errors = strength[:, None, None] * torch.tensor([16.0, 4.0, 1.0], dtype=torch.float64)[None, :, None]
    given = Problem(torch.tensor([[1, 2, 3]]).repeat(5, 1) * 100, errors, torch.ones(5, 3, dtype=torch.bool))
    # the gains of a second byte: 12 x strength, of a third: 3 x strength; six of them fit
    assert allocate.cheapest(given, 1100, torch.ones(1, dtype=torch.float64)).tolist() == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_no_metric_is_worse_than_the_best_single_choice(seed):
    given = problem(24, 5, seed)
    budget = int(given.nbytes[:, 2].sum())
    chosen = allocate.plan(given, budget, (1.0, 0.3, 0.01))
    assert given.bytes_of(chosen) <= budget
    uniform = given.errors[:, given.uniform(budget, given.even((1.0, 0.3, 0.01)))].sum(0)
    assert (given.total(chosen) <= uniform * (1 + 1e-12)).all()
    assert float((given.total(chosen) / uniform).mean()) < 0.9


def test_weights_move_when_a_metric_would_lose():
    """The sum alone would take from the first metric what the second gains; the plan may not."""
    errors = torch.tensor([
        [[1.0, 1.0], [1.0, 0.1], [0.9, 0.1]],
        [[3.0, 1.0], [1.0, 1.0], [0.2, 1.0]],
        [[1.2, 1.0], [1.0, 0.2], [0.6, 0.2]],
    ], dtype=torch.float64)  # fmt: skip
    given = Problem(torch.tensor([[1, 2, 3]]).repeat(3, 1), errors, torch.ones(3, 3, dtype=torch.bool))
    uniform = errors[:, 1].sum(0)
    for weights in ((1.0, 1.0), (0.01, 1.0), (1.0, 0.01)):
        assert (given.total(allocate.plan(given, 6, weights)) <= uniform + 1e-12).all()


def test_a_metric_without_weight_does_not_hold_the_plan_back():
    given = problem(12, 4, 3)
    given.errors[:, :, 1] = given.errors[:, :, 1].flip(0)
    budget = int(given.nbytes[:, 1].sum())
    alone = allocate.cheapest(given, budget, torch.tensor([1.0, 0, 0], dtype=torch.float64))
    chosen = allocate.plan(given, budget, (1.0, 0.0, 0.0))
    assert torch.allclose(given.total(chosen)[0], given.total(alone)[0], rtol=0.03)


def test_what_is_not_allowed_is_not_chosen():
    given = problem(8, 4, 1)
    given.allowed[0, :3] = given.allowed[7, :2] = False
    chosen = allocate.plan(given, int(given.nbytes[:, 1].sum() * 1.3), EVEN)
    assert chosen[0] == 3 and chosen[7] >= 2


def test_without_a_single_choice_that_fits_there_is_still_a_plan():
    given = problem(5, 2, 4)
    given.allowed[0, 0] = given.allowed[1, 1] = False
    budget = given.least + 10
    assert given.uniform(budget, given.even(EVEN)) is None
    assert given.bytes_of(allocate.plan(given, budget, EVEN)) <= budget


def test_a_budget_below_the_smallest_plan():
    given = problem(5, 3, 0)
    assert given.bytes_of(allocate.plan(given, given.least, EVEN)) == given.least
    with pytest.raises(ValueError, match=r"smallest plan of these candidates takes .* MB.*Raise the budget"):
        allocate.plan(given, given.least - 1, EVEN)


def test_a_budget_for_everything_takes_the_best_of_each():
    given = problem(9, 4, 5)
    chosen = allocate.plan(given, int(given.nbytes.amax(1).sum()), EVEN)
    assert torch.equal(chosen, (given.errors @ given.even(EVEN)).argmin(1))


def test_as_many_layers_as_large_models_have():
    given = problem(400, 6, 7)
    budget = int(given.nbytes[:, 2].sum())
    chosen = allocate.plan(given, budget, EVEN)
    uniform = given.errors[:, 2].sum(0)
    assert given.bytes_of(chosen) <= budget and (given.total(chosen) < 0.6 * uniform).all()
    assert given.bytes_of(chosen) > 0.999 * budget, "the budget is used"
