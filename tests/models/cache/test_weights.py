"""Predictors against polynomials, the recurrences they come from, and the numbers of the cache specification."""

from __future__ import annotations

from fractions import Fraction
from math import factorial

import pytest
import torch
from interspatial.kernels.weighted_sum import weighted_sum
from interspatial.models.cache import weights
from interspatial.models.cache.weights import bounded, chebyshev, damped, hermite, mixed, newton, paper, reuse

pytestmark = pytest.mark.usefixtures("poisoned")

EVEN = [0.0, 5.0, 10.0]   # a run every five steps
RAGGED = {"shifted flow": [0.9375, 0.8823, 0.8333, 0.75, 0.625], "steps": [0.0, 1.0, 2.0, 6.0, 13.0]}
# (parameters, K kept, degree): the fit has fewer outputs than coefficients, as many, more
FITS = [(1, 4), (2, 1), (3, 4), (5, 4), (8, 1), (8, 2), (8, 6)]


def quadratic(t: float) -> float:
    return 3 + 2 * t - 0.1 * t * t


def forecast(found: list[float], values: list[float]) -> float:
    return sum(w * y for w, y in zip(found, values, strict=True))


def taylorseer(steps: list, outputs: list, step, order: int, first: int):
    """The recurrence of section 3 as it is written: factors are renewed at every full step, with the last gap."""
    factors: list = []
    for j, (own, output) in enumerate(zip(steps, outputs, strict=True)):
        renewed = [output]
        for i in range(order):
            if i < len(factors) and own > first - 2:
                renewed.append((renewed[i] - factors[i]) / (own - steps[j - 1]))
            else:
                break
        factors = renewed
    k = step - steps[-1]
    return sum(factor * k**i / factorial(i) for i, factor in enumerate(factors))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kept", RAGGED.values(), ids=RAGGED)
def test_divided_differences_are_exact_for_polynomials(kept, order):
    """On irregular gaps, in float32 tensors, through the sum that a render uses."""
    draw = torch.Generator().manual_seed(order)
    coefficients = torch.randn(order + 1, 3, 7, 5, generator=draw, dtype=torch.float64)
    span = kept[-1] - kept[0]
    for u in (kept[-1] + 0.1 * span, kept[-1] + 0.35 * span):
        at = lambda t: sum(c * ((t - kept[0]) / span) ** i for i, c in enumerate(coefficients))  # noqa: E731
        found = weighted_sum([at(t).float() for t in kept], newton(kept, u, order))
        assert (found.double() - at(u)).abs().max() <= 1e-5 * at(u).abs().max()


def test_reference_numbers():
    """Section 3.1.3 of the specification: a quadratic signal, runs at 0, 5 and 10, forecasts at 11 to 14."""
    ahead = (11, 12, 13, 14)
    values = [quadratic(t) for t in EVEN]
    assert [forecast(paper(EVEN, u, 2), values) for u in ahead] == pytest.approx([13.4, 13.6, 13.6, 13.4])
    assert [forecast(newton(EVEN, u, 2), values) for u in ahead] == pytest.approx([12.9, 12.6, 12.1, 11.4])
    assert newton(EVEN, 11, 1) == pytest.approx([0, -0.2, 1.2])
    assert newton(EVEN, 14, 1) == pytest.approx([0, -0.8, 1.8])
    assert newton(EVEN, 11, 2) == pytest.approx([0.12, -0.44, 1.32])
    assert newton(EVEN, 14, 2) == pytest.approx([0.72, -2.24, 2.52])
    gains = [sum(abs(w) for w in newton(EVEN, u, 2)) for u in ahead]
    assert gains == pytest.approx([1.88, 2.92, 4.12, 5.48])


@pytest.mark.parametrize("first", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_paper_is_its_recurrence_to_the_last_bit(order, first):
    """In exact arithmetic; the weights see only the order + 1 outputs that are kept, the recurrence all of them."""
    steps = [Fraction(s) for s in (0, 1, 2, 3, 4, 9, 11, 16)]
    outputs = [Fraction(p, 7) for p in (3, -8, 20, 1, 45, -6, 11, 2)]
    for count in range(1, len(steps) + 1):
        kept = slice(max(count - order - 1, 0), count)
        step = steps[count - 1] + 3
        found = paper(steps[kept], step, order, first)
        assert forecast(found, outputs[kept]) == taylorseer(steps[:count], outputs[:count], step, order, first)


def test_paper_is_exact_for_lines_alone():
    assert forecast(paper(EVEN, 13, 4), [4 - 3 * t for t in EVEN]) == pytest.approx(4 - 3 * 13)
    assert abs(forecast(paper(EVEN, 13, 2), [quadratic(t) for t in EVEN]) - quadratic(13)) > 1


def test_hermite_polynomials():
    """sigma^i H_i(sigma k) in the closed form of the first four, as multiples of the paper's differences."""
    steps, outputs, k = [0.0, 1.0, 5.0, 9.0], [2.0, -1.0, 4.0, 0.5], 3.0
    s = 0.5
    factors = [taylorseer(steps, outputs, steps[-1], 0, 0)]
    for order in (1, 2, 3):   # what an order adds to the paper's forecast one step ahead is its factor over i!
        one = steps[-1] + 1
        higher, lower = (taylorseer(steps, outputs, one, n, 0) for n in (order, order - 1))
        factors.append(factorial(order) * (higher - lower))
    x = s * k
    basis = [1.0, s * 2 * x, s**2 * (4 * x**2 - 2), s**3 * (8 * x**3 - 12 * x)]
    for order in range(4):
        want = sum(basis[i] * factors[i] / factorial(i) for i in range(order + 1))
        assert forecast(hermite(steps, steps[-1] + k, order), outputs) == pytest.approx(want)


def test_damped_lies_between_reuse_and_the_polynomial():
    assert damped(EVEN, 12, 1) == pytest.approx([0, -0.28, 1.28])
    assert damped(EVEN, 12, 2, rho=0.0) == reuse(EVEN, 12) == [0, 0, 1]
    assert damped(EVEN, 12, 2, rho=1.0) == newton(EVEN, 12, 2)


@pytest.mark.parametrize("predictor", [newton, paper, damped, hermite])
def test_fewer_outputs_than_the_order_asks_for(predictor):
    assert predictor([4.0], 5.0, 3) == [1]
    assert predictor([4.0, 4.5], 5.0, 3) == pytest.approx(predictor([4.0, 4.5], 5.0, 1))


@pytest.mark.parametrize(("count", "degree"), FITS)
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_chebyshev_reproduces_constants(count, degree, ridge):
    kept = RAGGED["steps"] + [15.0, 20.0, 22.0]
    found = chebyshev(kept[:count], 23.5, degree, ridge)
    assert len(found) == count
    assert forecast(found, [7.25] * count) == pytest.approx(7.25)


@pytest.mark.parametrize("run", [(), (0.6, 0.9), (0.0, 1.0)], ids=["kept", "inside", "wider"])
def test_chebyshev_is_the_ridge_fit(run):
    """Minimum of |Phi c - y|^2 + ridge |c|^2 by least squares on numpy's own polynomials."""
    from numpy.polynomial.chebyshev import chebvander

    kept, u, degree, ridge = RAGGED["shifted flow"], 0.5, 3, 0.3
    y = torch.tensor([1.0, -2.0, 0.5, 4.0, 3.0], dtype=torch.float64)
    low, high = (0.0, 1.0) if run == (0.0, 1.0) else (u, kept[0])   # what -1 and 1 stand for
    tau = lambda t: 2 * (t - low) / (high - low) - 1  # noqa: E731
    phi = torch.from_numpy(chebvander([tau(t) for t in kept], degree))
    here = torch.from_numpy(chebvander([tau(u)], degree))[0]

    def fit(values: torch.Tensor) -> float:
        tall = torch.cat([phi, ridge**0.5 * torch.eye(degree + 1, dtype=torch.float64)])
        solved = torch.linalg.lstsq(tall, torch.cat([values, torch.zeros(degree + 1, dtype=torch.float64)])).solution
        return float(here @ solved)

    want = fit(y) / fit(torch.ones(5, dtype=torch.float64))
    assert forecast(chebyshev(kept, u, degree, ridge, run), y.tolist()) == pytest.approx(want)


def test_chebyshev_without_ridge_is_the_polynomial():
    """As many outputs as coefficients: the fit goes through all of them."""
    kept = RAGGED["shifted flow"]
    assert chebyshev(kept, 0.55, 4, 1e-14) == pytest.approx(newton(kept, 0.55, 4), rel=1e-5)


def test_a_high_ridge_shrinks_towards_the_mean_not_towards_zero():
    found = chebyshev(EVEN, 12, 2, 1e-3), chebyshev(EVEN, 12, 2, 1e6)
    assert found[0] == pytest.approx(newton(EVEN, 12, 2), abs=0.05)
    assert sum(found[1]) == pytest.approx(1)
    assert sum(abs(w) for w in found[1]) < sum(abs(w) for w in found[0])


def test_the_guard_lowers_the_order_where_noise_would_grow():
    weigh = lambda u: bounded(lambda order: newton(EVEN, u, order), 2)  # noqa: E731
    assert weigh(12) == newton(EVEN, 12, 2)
    assert weigh(13) == newton(EVEN, 13, 1), "4.12 is above the bound"
    assert weigh(40) == newton(EVEN, 40, 0) == [0, 0, 1], "even the line multiplies by thirteen"
    assert weights.GAIN == 4


def test_a_mix_is_linear():
    assert mixed([0.0, 1.0], [-1.0, 2.0], 0.25) == [-0.25, 1.25]
