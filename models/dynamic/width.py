"""Layers that compute a part of their channels: rows of one weight, columns of the next.

The parts are taken from the layer's weight in every forward, so LoRAs, streaming and casts count as they do without us.
What that costs was measured on one CPU core: gathering 10 of 16 groups of a 1024 x 256 weight takes 2.4 % (rows) and
4.5 % (columns) of its product with 320 tokens, 0.5 % and 1.4 % with 1280. Neighbouring channels are a view, at no cost.
"""

# B batch   N tokens   I, O channels of a layer   P channels that are kept

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..host.layers import layer_weights

Channels = slice | Tensor
Cover = Callable[[Callable], Callable]


def channels(kept: Sequence[int], size: int, device: torch.device) -> Channels:
    """Channels of the kept parts, `size` in each; a slice where the parts follow each other. kept: rising"""
    if kept[-1] - kept[0] == len(kept) - 1:
        return slice(kept[0] * size, (kept[-1] + 1) * size)
    return torch.tensor([part * size + i for part in kept for i in range(size)], device=device)


@dataclass
class Cuts:
    """Channels of kept parts, each made once: bringing an index to a GPU makes it wait."""

    device: torch.device
    made: dict[tuple, Channels] = field(default_factory=dict)

    def __call__(self, kept: tuple[int, ...], size: int) -> Channels:
        if (kept, size) not in self.made:
            self.made[kept, size] = channels(kept, size, self.device)
        return self.made[kept, size]


def part(x: Tensor, chosen: Channels, dim: int) -> Tensor:
    """The chosen entries of one axis."""
    if isinstance(chosen, slice):
        return x.narrow(dim, chosen.start, chosen.stop - chosen.start)
    return x.index_select(dim, chosen)


def rows(layer: nn.Linear, chosen: Channels) -> Cover:
    """A linear layer that computes the chosen output channels. [B, N, I] -> [B, N, P]"""

    def forward(x: Tensor) -> Tensor:
        with layer_weights(layer, x) as (weight, bias):
            return F.linear(x, part(weight, chosen, 0), None if bias is None else part(bias, chosen, 0))

    return lambda _: forward


def columns(layer: nn.Linear, chosen: Channels) -> Cover:
    """A linear layer that is given the chosen input channels; the others are zero. [B, N, P] -> [B, N, O]"""

    def forward(x: Tensor) -> Tensor:
        with layer_weights(layer, x) as (weight, bias):
            return F.linear(x, part(weight, chosen, 1), bias)

    return lambda _: forward


def norm(layer: nn.RMSNorm, chosen: Channels) -> Cover:
    """An RMS norm over the chosen channels alone. [B, N, P] -> [B, N, P]"""

    def forward(x: Tensor) -> Tensor:
        with layer_weights(layer, x) as (weight, _):
            return F.rms_norm(x, x.shape[-1:], part(weight, chosen, 0), layer.eps)

    return lambda _: forward
