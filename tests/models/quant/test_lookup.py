"""Tables of levels: Lloyd's condition, twin logarithms, the nearest level, and one of two by chance."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.quant import tlq
from interspatial.models.quant.lookup import GAUSS, fitted_levels, gauss_levels, looked_up, nearest, one_of_two, whole
from torch.distributions import Laplace, Normal, StudentT

pytestmark = pytest.mark.usefixtures("poisoned")


def unit_rows(kind: torch.distributions.Distribution, rows: int, columns: int) -> torch.Tensor:
    """Of root mean square 1."""
    torch.manual_seed(0)
    drawn = kind.sample((rows, columns))
    return drawn / drawn.square().mean(1, keepdim=True).sqrt()


@pytest.mark.parametrize("bits", GAUSS)
def test_fixed_levels_are_the_means_of_their_cells(bits):
    """Lloyd's condition, in closed form: (pdf(a) - pdf(b)) / (cdf(b) - cdf(a))."""
    levels, normal = gauss_levels(bits, torch.device("cpu")).double(), Normal(0.0, 1.0)
    edges = torch.cat((torch.tensor([-40.0]), (levels[1:] + levels[:-1]) / 2, torch.tensor([40.0]))).double()
    means = -normal.log_prob(edges).exp().diff() / normal.cdf(edges).diff()
    assert (means - levels).abs().max() < 2e-6


def test_fitted_levels_meet_lloyds_condition():
    rows = unit_rows(StudentT(torch.tensor(4.0)), 5, 700)
    for row, levels in zip(rows, fitted_levels(rows, 3), strict=True):
        assert (levels.diff() >= 0).all()
        cells = (row[:, None] - levels).abs().argmin(1)
        means = torch.stack([row[cells == i].mean() for i in range(8)])
        assert (means - levels).abs().max() < 0.05  # the fit ends before the last bit


def test_nearest_is_the_nearest():
    draw = torch.Generator().manual_seed(0)
    table = torch.randint(-127, 128, (5, 16), generator=draw).sort(1).values.to(torch.int8)
    steps = torch.randn(5, 99, generator=draw) * 80
    gaps = (steps[:, :, None] - table[:, None].float()).abs()
    found = looked_up(nearest(steps, table), table).float()
    assert torch.equal((steps - found).abs(), gaps.amin(2))
    shared = looked_up(nearest(steps, table[0]), table[0]).float()
    assert torch.equal((steps - shared).abs(), (steps[:, :, None] - table[0].float()).abs().amin(2))


def test_chance_picks_one_of_the_two_levels_around():
    table = torch.tensor([-127, -10, -10, 30, 127], dtype=torch.int8)  # two levels may be the same
    steps = torch.tensor([[-300.0, -127, -68.5, -10, 10, 30, 100, 400]]).repeat(4000, 1)
    found = looked_up(one_of_two(steps, table, 1), table).float()
    near = [{-127.0}, {-127.0}, {-127.0, -10.0}, {-10.0}, {-10.0, 30.0}, {30.0}, {30.0, 127.0}, {127.0}]
    assert [set(column.tolist()) for column in found.t()] == near
    assert (found.mean(0)[1:-1] - steps[0, 1:-1]).abs().max() < 3 * 58.5 / 4000**0.5


def test_whole_tables_reach_the_end_of_int8():
    table, step = whole(torch.tensor([[-2.0, -0.5, 0.5, 1.0], [-1e-9, 0, 0, 1e-9]]))
    assert table.tolist() == [[-127, -32, 32, 64], [-127, 0, 0, 127]]
    assert (step * 127 - torch.tensor([[2.0], [1e-9]])).abs().max() < 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_twin_log_levels_are_even_in_the_logarithm(bits):
    rows = unit_rows(Laplace(0.0, 1.0), 6, 900)
    eta, quantile = 0.7, 0.99
    levels = tlq.twin_log_levels(rows, bits, eta, quantile)
    for row, found in zip(rows, levels, strict=True):
        for sign, side in ((1, found[2 ** (bits - 1) :]), (-1, -found[: 2 ** (bits - 1)].flip(0))):
            logs = (side.double() + eta).log2()
            assert (logs.diff().diff().abs() < 1e-5).all()
            inside = (row[row * sign > 0] * sign).double()
            assert (inside <= side[-1] + 1e-6).double().mean() == pytest.approx(quantile, abs=0.005)
            assert (inside >= side[0] - 1e-6).double().mean() == pytest.approx(quantile, abs=0.005)


def test_twin_log_rows_of_one_sign():
    levels = tlq.twin_log_levels(torch.rand(3, 64) + 0.1, 3, 0.5, 0.99)
    assert levels.isfinite().all() and (levels.diff() >= -1e-6).all()
