"""Forecasts as weights: each predictor says how much of each kept output is in the forecast.

All published predictors are linear in what was kept, so they differ in K numbers and nothing else. They are computed on
the host in double precision; the device makes one weighted sum. us: abscissae of the kept outputs, oldest first.
"""
# K kept outputs    M degree of a polynomial

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial, prod

import torch

RHO = 0.7        # share of the polynomial in `damped`
HERMITE = 0.5    # HiCache's contraction, of its released settings
# Sum of |weights| above which a forecast takes fewer orders: noise in what was kept grows by as much. On the tiny
# text-to-video model (20 steps, every 2nd run) order 2 without it has 31 dB to the full run, with it 47 dB as order 1;
# order 1, every 4th of 50 steps, is off by 0.035 in the latent without it, by 0.020 with it (right after the first
# steps, which lie close together, a line reaches far).
GAIN = 4.0

Weights = list[float]


def reuse(us: Sequence[float], u: float) -> Weights:
    """The newest output as it is."""
    return [0.0] * (len(us) - 1) + [1.0]


def newton(us: Sequence[float], u: float, order: int) -> Weights:
    """The polynomial of degree `order` (less, while fewer outputs are there) through the newest order + 1 outputs.

    Divided differences in Lagrange's form: exact for polynomials up to that degree whatever the gaps.
    """
    first = max(len(us) - order - 1, 0)
    near = us[first:]
    return [0.0] * first + [
        prod(((u - other) / (own - other) for k, other in enumerate(near) if k != j), start=1.0)
        for j, own in enumerate(near)
    ]


def paper(us: Sequence[float], u: float, order: int, first: int = 0) -> Weights:
    """TaylorSeer as published (arXiv 2503.06923, section 3): differences in place of derivatives of a Taylor series.

    Every difference is divided by the last gap alone, so the second one is off where gaps differ, and even with equal
    gaps the forecast is exact only for straight lines. The weights reproduce the authors' code, in exact arithmetic to
    the last bit. us, u: steps
    first: steps at the start that always ran; the code takes differences from the last of them on
    """
    return _series(us, u, _differences(us, order, first), lambda i, k: k**i)


def hermite(us: Sequence[float], u: float, order: int, sigma: float = HERMITE) -> Weights:
    """HiCache (arXiv 2508.16984): the differences of `paper`, on Hermite polynomials sigma^i H_i(sigma k) for k^i.

    H_i as in physics; k in steps. It does not pass through the outputs: order 1 is `paper` with 2 sigma^2 of its slope.
    """
    return _series(us, u, _differences(us, order), lambda i, k: sigma**i * _hermite(i, sigma * k))


def damped(us: Sequence[float], u: float, order: int, rho: float = RHO) -> Weights:
    """(1 - rho) of the newest output, rho of `newton`."""
    return mixed(reuse(us, u), newton(us, u, order), rho)


def chebyshev(us: Sequence[float], u: float, degree: int, ridge: float, run: Sequence[float] = ()) -> Weights:
    """Spectrum (arXiv 2603.01623): Chebyshev polynomials up to `degree` fitted to all K outputs by ridge regression.

    Differs from the paper: the degree stays below K, and the weights are scaled to sum 1, because the ridge shrinks
    constants too.
    run: abscissae of the whole run's ends; what lies between them (and us, u) is mapped to [-1, 1], so that the ridge
        holds the fit as strongly wherever the run is
    """
    low, high = min(*us, u, *run), max(*us, u, *run)
    places = torch.tensor([*us, u], dtype=torch.float64).sub(low).mul(2 / (high - low)).sub(1)
    basis = torch.cos(torch.arange(min(degree, len(us) - 1) + 1) * places.clamp(-1, 1).acos()[:, None])   # [K + 1, M]
    kept, here = basis[:-1], basis[-1]
    found = torch.linalg.solve(kept.T @ kept + ridge * torch.eye(len(here), dtype=torch.float64), kept.T).T @ here
    return (found / found.sum()).tolist()


def mixed(a: Weights, b: Weights, share: float) -> Weights:
    """(1 - share) of a, share of b."""
    return [(1 - share) * x + share * y for x, y in zip(a, b, strict=True)]


def bounded(weigh: Callable[[int], Weights], order: int) -> Weights:
    """`weigh(order)` of the highest order that keeps the sum of |weights| within GAIN; of order 0 whatever it gives."""
    for lower in range(order, 0, -1):
        weights = weigh(lower)
        if sum(abs(w) for w in weights) <= GAIN:
            return weights
    return weigh(0)


def _differences(us: Sequence[float], order: int, first: int = 0) -> list[Weights]:
    """Differences of order 0, 1, ... at the newest output, each as weights of the outputs."""
    found: list[Weights] = []
    for j, own in enumerate(us):
        before, found = found, [[int(i == j) for i in range(len(us))]]
        if own < first - 1:
            continue
        for old in before[:order]:
            found.append([(a - b) / (own - us[j - 1]) for a, b in zip(found[-1], old, strict=True)])
    return found


def _series(us: Sequence[float], u: float, differences: list[Weights], basis: Callable[[int, float], float]) -> Weights:
    """sum over i of basis(i, k) / i! of difference i, where k is how far u lies from the newest output."""
    scales = [basis(i, u - us[-1]) / factorial(i) for i in range(len(differences))]
    return [sum(s * w for s, w in zip(scales, column, strict=True)) for column in zip(*differences, strict=True)]


def _hermite(i: int, x: float) -> float:
    last, value = 0.0, 1.0
    for k in range(i):
        last, value = value, 2 * x * value - 2 * k * last
    return value
