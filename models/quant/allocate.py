"""Bits where they matter: one option for each layer, the least error within a budget of bytes.

Errors of layers add up, as those of independent small changes do. First the price of a byte at which the cheapest
choices just fit (Lagrange; exact on the convex hull), then what is left of the budget, then exchanges between two
layers until none helps. A plan must not trade one metric for another: it has to be at least as good as the best single
choice for all layers in every metric that counts, so the weights of the metrics move until it is, and by
a margin where that can be.

Source: a budget by measured sensitivity as in ViDiT-Q (arXiv 2406.02540); Lagrangian relaxation of the multiple-choice
knapsack is textbook.
"""
# L layers   C options   M metrics

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 40   # of moving weights, and of halving the price
MARGIN = 0.75   # of the uniform choice's errors: measured ratios came out up to 1.25 times the predicted (tiny model)


@dataclass(frozen=True)
class Problem:
    """nbytes: [L, C] int64    errors: [L, C, M] float64
    allowed: [L, C] bool; each layer has one or more
    """

    nbytes: Tensor
    errors: Tensor
    allowed: Tensor

    def total(self, chosen: Tensor) -> Tensor:
        """[M] errors of a plan. chosen: [L] int64"""
        return self.errors[torch.arange(len(chosen)), chosen].sum(0)

    def bytes_of(self, chosen: Tensor) -> int:
        return int(self.nbytes.gather(1, chosen[:, None]).sum())

    @property
    def least(self) -> int:
        """Bytes of the smallest plan."""
        return int(self._priced(self.nbytes).amin(1).sum())

    def even(self, weights: Sequence[float]) -> Tensor:
        """[M] float64, weights of metrics for errors that differ in size: as shares of what the best options leave."""
        best = torch.where(self.allowed[..., None], self.errors, torch.inf).amin(1).sum(0)
        return torch.tensor(weights, dtype=torch.float64) / best.clamp_min(1e-300)

    def uniform(self, budget: int, weights: Tensor) -> int | None:
        """The option that, taken for all layers, has the least weighted error within the budget; None: none fits."""
        fits = [c for c in range(self.nbytes.shape[1])
                if self.allowed[:, c].all() and int(self.nbytes[:, c].sum()) <= budget]  # fmt: skip
        return min(fits, key=lambda c: float(self.errors[:, c].sum(0) @ weights), default=None)

    def _priced(self, nbytes: Tensor) -> Tensor:
        return torch.where(self.allowed, nbytes, torch.iinfo(torch.int64).max // (2 * len(nbytes)))


def plan(problem: Problem, budget: int, weights: Sequence[float]) -> Tensor:
    """[L] int64, the option of each layer.

    weights: [M], how much each metric counts; errors are taken as ratios to those of the best single option, so that
        equal weights mean equal relative gains
    raises: ValueError when no plan fits
    """
    if problem.least > budget:
        raise ValueError(
            f"the smallest plan of these candidates takes {problem.least / 1e6:.1f} MB, and the budget is "
            f"{budget / 1e6:.1f} MB. Raise the budget, or allow formats with fewer bits"
        )
    even = problem.even(weights)
    uniform = problem.uniform(budget, even)
    if uniform is None:
        return cheapest(problem, budget, even)
    weights = torch.tensor(weights, dtype=torch.float64)
    reference = problem.errors[:, uniform].sum(0).clamp_min(1e-300)
    best, best_worst = torch.full((len(problem.nbytes),), uniform), torch.inf
    pushed = weights.clone()
    for _ in range(ROUNDS):
        chosen = cheapest(problem, budget, pushed / reference)
        ratios = (problem.total(chosen) / reference)[weights > 0]
        worst = float(ratios.amax())
        if worst < best_worst:
            best, best_worst = chosen, worst
        if worst <= MARGIN:
            break
        pushed[weights > 0] *= ratios.clamp(0.01, 100)
        pushed /= pushed.sum()
    return best if best_worst <= 1 else torch.full_like(best, uniform)


def cheapest(problem: Problem, budget: int, weights: Tensor) -> Tensor:
    """[L], the options of nearly the least weighted error that fit. weights: [M] float64"""
    cost = torch.where(problem.allowed, problem.errors @ weights, torch.inf)
    chosen = _by_price(problem, cost, budget)
    while (move := _best_move(problem, cost, chosen, budget)) is not None:
        for layer, option in move:
            chosen[layer] = option
    return chosen


def _by_price(problem: Problem, cost: Tensor, budget: int) -> Tensor:
    """Each layer's best option at the lowest price of a byte at which all of them fit."""

    def at(price: float) -> Tensor:
        return (cost + price * problem.nbytes).argmin(1)

    chosen = at(0.0)
    if problem.bytes_of(chosen) <= budget:
        return chosen
    finite = cost[cost.isfinite()]
    low, high = 0.0, float(finite.max() - finite.min()) + 1e-300   # at this price one byte outweighs every error
    chosen = at(high)
    for _ in range(2 * ROUNDS):
        middle = (low * high) ** 0.5 if low else high * 1e-6
        found = at(middle)
        if problem.bytes_of(found) <= budget:
            chosen, high = found, middle
        else:
            low = middle
    return chosen


def _best_move(problem: Problem, cost: Tensor, chosen: Tensor, budget: int) -> tuple[tuple[int, int], ...] | None:
    """The change of one layer, or of two at once, that gains most within the budget; None: none gains."""
    room = budget - problem.bytes_of(chosen)
    gain = cost.gather(1, chosen[:, None]) - cost   # [L, C], -inf where not allowed
    grows = problem.nbytes - problem.nbytes.gather(1, chosen[:, None])
    least = 1e-12 * float(cost.gather(1, chosen[:, None]).sum())   # rounding must not turn into endless exchanges
    alone = torch.where(grows <= room, gain, -torch.inf)
    if float(alone.max()) > least:
        at = int(alone.argmax())
        return (divmod(at, cost.shape[1]),)
    return _best_exchange(gain, grows, room, least)


def _best_exchange(gain: Tensor, grows: Tensor, room: int, least: float) -> tuple[tuple[int, int], ...] | None:
    """One layer gains, another pays. By size: for each option that gains, the least loss among those that free enough
    bytes, in another layer.
    """
    options = gain.shape[1]
    frees = ((grows < 0) & gain.isfinite()).flatten().nonzero().flatten()
    frees = frees[grows.flatten()[frees].argsort()]   # those that free most come first
    if not len(frees):
        return None
    loses, freed, owner = gain.flatten()[frees], -grows.flatten()[frees], frees // options
    best = None
    for at in (gain > least).flatten().nonzero().flatten().tolist():
        layer = at // options
        enough = (freed >= int(grows.flatten()[at]) - room) & (owner != layer)
        both = torch.where(enough, loses + gain.flatten()[at], -torch.inf)
        if float(both.max()) > (least if best is None else best[0]):
            best = float(both.max()), at, int(frees[both.argmax()])
    return best and (divmod(best[1], options), divmod(best[2], options))
