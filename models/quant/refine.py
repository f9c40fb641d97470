"""Refining a quantised block against the block in full precision: no data, only what the model itself makes of noise.

Source: zero-data block-wise calibration of VQ4DiT (arXiv 2408.17131), after the trajectory of the teacher. Differs from
the paper: one block after the other, each with the inputs that the refined blocks before it give, so that errors do not
pile up; Adam in place of RMSprop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .format import Coded
from .learned import LearnedLayer

LOOKED_AT = 24  # calls that the error before and after is measured on
SETTLING = (0.4, 0.85)  # part of the iterations in which groups choose; then codebooks and scales fit what was chosen


@dataclass(frozen=True)
class Effort:
    """iterations: for each block    candidates: vectors that a group of weights may become
    book, scale, bias, choice: learning rates, see `LearnedLayer.rates`
    """

    iterations: int = 300
    candidates: int = 2
    book: float = 3e-3
    scale: float = 2e-3
    bias: float = 1e-3
    choice: float = 5e-2


@dataclass(frozen=True)
class Refined:
    """What became of a block. before, after: squared error of its output over what the block adds to its input

    weights, biases: of the layers; those of before where refining did not help
    """

    before: float
    after: float
    weights: Mapping[str, Coded]
    biases: Mapping[str, Tensor]


def refine_block(
    layers: Mapping[str, LearnedLayer], error: Callable[[int], Tensor], calls: int, effort: Effort,
    tick: Callable[[], None] = lambda: None,
) -> Refined:  # fmt: skip
    """Needs gradients to be on.

    layers: those of the block
    error: error(i) of the block's output in call i, below `calls`, with the layers as they are now
    tick: called before each iteration; may raise the user's interrupt
    """
    first = {name: layer.coded for name, layer in layers.items()}
    biases = {name: layer.bias.detach().clone() for name, layer in layers.items() if layer.bias is not None}
    before = _measured(layers, first, error, calls)
    _learn(layers, error, calls, effort, tick)
    found = {name: layer.result() for name, layer in layers.items()}
    after = _measured(layers, found, error, calls)
    if not after < before:
        return Refined(before, before, first, biases)
    return Refined(before, after, found, {name: layers[name].bias.detach() for name in biases})


def _learn(layers: Mapping[str, LearnedLayer], error, calls: int, effort: Effort, tick) -> None:
    groups = [group for layer in layers.values()
              for group in layer.rates(effort.book, effort.scale, effort.bias, effort.choice)]  # fmt: skip
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    draw, order = torch.Generator().manual_seed(0), []
    start, end = (int(part * effort.iterations) for part in SETTLING)
    for i in range(effort.iterations):
        tick()
        order = order or torch.randperm(calls, generator=draw).tolist()
        pace = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * i / effort.iterations))
        for group in optimiser.param_groups:
            group["lr"] = group["top"] * pace
        optimiser.zero_grad(set_to_none=True)
        error(order.pop()).backward()
        optimiser.step()
        if i >= start and (i % 10 == 0 or i == end):
            for layer in layers.values():
                layer.settle(min(1.0, (i - start) / max(1, end - start)))


@torch.no_grad()
def _measured(layers: Mapping[str, LearnedLayer], weights: Mapping[str, Coded], error, calls: int) -> float:
    """Mean error over evenly spaced calls with these weights."""
    for name, layer in layers.items():
        layer.hold(weights[name])
    every = range(0, calls, -(-calls // LOOKED_AT))
    found = torch.stack([error(i).detach() for i in every]).mean()
    for layer in layers.values():
        layer.hold(None)
    return float(found)
