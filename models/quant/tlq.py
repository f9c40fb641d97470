"""Twin-log levels of LRQ-DiT (arXiv 2508.03485): evenly spaced in log2(|w| + eta), apart for each sign and row.

eta, a share of the row's root mean square, and the quantile at which the range is cut are searched for the layer.
Differs from the released code: there the values of the other sign enter the range as zeros, so that it reaches to 1
whatever the weights are; here each side has its own values alone, and eta follows the size of the row.
"""
# N outputs   K inputs   L levels, 2^b

from __future__ import annotations

import torch
from torch import Tensor

from .lookup import looked_up, nearest, whole

# Shares of the row's rms. Best on rows of 2048: 2.5 to 4 on Gaussian, 0.7 to 1.5 on Laplace and Student t rows.
ETAS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0)
QUANTILES = (0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)  # the lower ones are for 2 bits


def searched(seen: Tensor, bits: int) -> tuple[float, float]:
    """eta and quantile of least squared error on some rows [N, K] of root mean square about 1."""
    sides = {quantile: _sides(seen, quantile) for quantile in QUANTILES}

    def error(pair: tuple[float, float]) -> float:
        table, step = whole(_levels(*sides[pair[1]], pair[0], bits))
        return float((looked_up(nearest(seen / step, table), table) * step - seen).square().sum())

    return min(((eta, quantile) for quantile in QUANTILES for eta in ETAS), key=error)


def twin_log_levels(rows: Tensor, bits: int, eta: float, quantile: float) -> Tensor:
    """[N, L] float32, ascending, for rows [N, K] of root mean square about 1."""
    return _levels(*_sides(rows, quantile), eta, bits)


def _sides(rows: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Least and largest magnitude in range, by sign: [N, 2] each, negative first. A sign that a row lacks: 0."""
    low, high = [], []
    for sign in (-1, 1):
        size = (rows * sign).sort(1, descending=True).values.clamp_min_(0)  # [N, K], this sign's values first
        last = ((size > 0).sum(1, keepdim=True) - 1).clamp_min(0)
        for found, share in ((high, 1 - quantile), (low, quantile)):
            found.append(size.gather(1, (last * share).round().long()))
    return torch.cat(low, 1), torch.cat(high, 1)


def _levels(low: Tensor, high: Tensor, eta: float, bits: int) -> Tensor:
    """[N, L] from the ranges of both signs. low, high: [N, 2]"""
    eta = max(eta, 1e-6)  # a side without values has the magnitude 0
    low, high = (low + eta).log2(), (high + eta).log2()
    share = torch.linspace(0, 1, 2 ** (bits - 1), device=low.device)
    size = (low[..., None] + (high - low)[..., None] * share).exp2() - eta  # [N, 2, L/2]
    return torch.cat((-size[:, 0].flip(1), size[:, 1]), 1)
