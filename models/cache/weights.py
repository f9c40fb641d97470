"""Forecasts as weights: each predictor says how much of each kept output is in the forecast.

All published predictors are linear in what was kept, so they differ in K numbers and nothing else. They are computed on
the host in double precision; the device makes one weighted sum. us: abscissae of the kept outputs, oldest first.
"""
from __future__ import annotations

from collections.abc import Sequence
from math import prod


def reuse(us: Sequence[float], u: float) -> list[float]:
    """The newest output as it is."""
    return [0.0] * (len(us) - 1) + [1.0]


def newton(us: Sequence[float], u: float, order: int) -> list[float]:
    """The polynomial of degree `order` (less, while fewer outputs are there) through the newest order + 1 outputs.

    Divided differences in Lagrange's form: exact for polynomials up to that degree whatever the gaps.
    """
    first = max(len(us) - order - 1, 0)
    near = us[first:]
    return [0.0] * first + [
        prod((u - other) / (own - other) for k, other in enumerate(near) if k != j) for j, own in enumerate(near)
    ]
