"""Which pattern each head gets, so that a stated share of attention is exact.

The cheapest one whose error is within a bound, as in Sparse-vDiT (arXiv 2506.03065) and, for whole layers, in
Efficient-vDiT (arXiv 2502.06155). Differs: the bound is not given, it follows from the density. The pattern with the
least sum of error and price, the papers' other form, has 2 to 6 % less expected error on the tiny model, but its clips
were no nearer to dense (25.3 dB for both, mean over densities 0.5, 0.3, 0.2), and it lets single heads go.
"""
# L layers   H heads   P patterns

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 0.01  # prices as near as this are one: a band and stripes of the same share differ by a block or two


def choose(errors: Tensor, prices: Tensor, density: float, weights: Tensor, *, by_layer: bool = False) -> Tensor:
    """Patterns whose mean price comes as near to the density as one bound for all can.

    errors: fp32 [bins, L, H, P]; pattern 0 is full attention, with error 0
    prices: fp32 [P], share of attention that each pattern computes
    weights: fp32 [bins], what each bin counts
    by_layer: one pattern for all heads and bins of a layer
    returns: int8 [bins, L, H]
    """
    shape = errors.shape[:3]
    if by_layer:
        share = (weights / weights.sum())[:, None, None, None]
        errors, weights = (errors * share).sum(0).mean(1)[None, :, None], weights.new_ones(1)
    bounds = torch.cat((errors.new_zeros(1), errors.flatten())).unique()  # ascending: the first is dense attention
    low, high = 0, len(bounds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if mean_price(_cheapest(errors, prices, bounds[middle]), prices, weights) > density:
            low = middle
        else:
            high = middle
    ends = (_cheapest(errors, prices, bounds[i]) for i in (low, high))
    return min(ends, key=lambda choice: abs(mean_price(choice, prices, weights) - density)).expand(shape).contiguous()


def mean_price(choice: Tensor, prices: Tensor, weights: Tensor) -> float:
    """Share of attention that a choice computes, over layers, heads and weighted bins."""
    return float(prices[choice.long()].mean((1, 2)) @ weights / weights.sum())


def _cheapest(errors: Tensor, prices: Tensor, bound: Tensor) -> Tensor:
    """Of the patterns within the bound, the one with the least price, and of those the one with the least error."""
    steps = (prices / NEAR).round()
    order = steps + 0.9 * errors / errors.amax().clamp(min=1e-30)  # errors decide between equal steps only
    return order.masked_fill(errors > bound, torch.inf).argmin(-1).to(torch.int8)
