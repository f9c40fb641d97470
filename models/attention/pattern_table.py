"""The table of a calibration: what each pattern costs each head, by place in the noise range, and what was chosen."""
# L calibrated layers   H heads   P patterns   V video blocks of the calibration

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels.attend_call import Tail
from ..call import AttentionCall
from .blocks import Blocks
from .pattern_choice import choose, mean_price
from .patterns import Pattern


@dataclass(frozen=True)
class Network:
    """The model that a table belongs to, as far as an attention call shows it; its class is told to people only."""

    family: str
    layers: int
    heads: int
    head_dim: int
    class_name: str = field(default="", compare=False)

    def __str__(self) -> str:
        name = f"{self.class_name} of family {self.family}" if self.class_name else f"family {self.family}"
        return f"{name} ({self.layers} layers, {self.heads} heads of {self.head_dim})"

    @classmethod
    def of(cls, call: AttentionCall) -> Network:
        family = call.forward.family.name if call.forward.family else "unknown"
        return cls(family, call.forward.layers, *call.q.shape[2:])


@dataclass(frozen=True, eq=False)
class PatternTable:
    """Compared and hashed by identity; tensors lie on the CPU.

    network: the model it was measured on
    layers: numbers of the calibrated layers, ascending
    patterns: the candidates, full attention first
    grid, blocks, tail: of the calibration; grid is T H W
    density: what `choice` was chosen for
    choice: int8 [bins, L, H], number of the pattern
    prices: fp32 [P], share of attention that each pattern computes on that grid
    errors: fp32 [bins, L, H, P], squared error of a head's output over the mean square of the layer's heads
    calls: int32 [bins, L], attention calls behind the errors; a bin with 0 has those of the nearest
    mass: fp16 [L, H, V], softmax mass of a token of each block, in multiples of an even share
    centres: fp32 [V, 3], `Places.share` of the blocks
    """

    network: Network
    layers: tuple[int, ...]
    patterns: tuple[Pattern, ...]
    grid: tuple[int, int, int]
    blocks: Blocks
    tail: Tail | None
    density: float
    choice: Tensor
    prices: Tensor
    errors: Tensor
    calls: Tensor
    mass: Tensor
    centres: Tensor

    @property
    def bins(self) -> int:
        return self.errors.shape[0]

    @property
    def by_layer(self) -> bool:
        """True for reference frames: one pattern for a layer."""
        return any(pattern.kind == "frames" for pattern in self.patterns)

    def bin_of(self, percent: float) -> int:
        """Bins are even parts of the model's noise range."""
        return bin_of(percent, self.bins)

    def why_not(self, network: Network) -> str | None:
        """Why the table is of no use for a model."""
        if network == self.network:
            return None
        return f"the sparse pattern was calibrated on {self.network}, and this model is {network}"

    def chosen(self, density: float) -> PatternTable:
        """The table with the choice for another density."""
        weights = self.calls.sum(1).float()
        choice = choose(self.errors, self.prices, density, weights, by_layer=self.by_layer)
        return replace(self, density=density, choice=choice)

    def expected(self) -> tuple[float, float]:
        """Share of attention that the choice computes, and the relative L2 error of a layer that goes with it."""
        weights = self.calls.sum(1).float()
        error = self.errors.gather(-1, self.choice.long()[..., None])[..., 0].mean((1, 2))
        return mean_price(self.choice, self.prices, weights), float((error @ weights / weights.sum()).sqrt())

    def mass_at(self, centres: Tensor) -> Tensor:
        """The mass on another grid: that of the nearest calibrated block.

        centres: fp32 [W, 3]; returns fp16 [L, H, W] on its device
        """
        nearest = torch.cdist(centres, self.centres.to(centres.device)).argmin(-1)
        return self.mass.to(centres.device)[..., nearest]


def bin_of(percent: float, bins: int) -> int:
    """Bins are even parts of the model's noise range: the number of the one at `percent`, 0 to 1.

    A step at the border of two, found by bisection, belongs to the later one whatever its last digit.
    """
    return min(int(percent * bins + 1e-6), bins - 1)
