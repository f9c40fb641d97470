"""What a calibration gathers while it watches a run, and the table that it makes of it."""
# H heads   V video blocks   L calibrated layers   P patterns

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels.attend_call import Tail
from ..layout import TokenLayout
from .blocks import Blocks
from .orders import BlockOrder
from .pattern_table import Network, PatternTable
from .patterns import Pattern, Places, price

MOST_MASS = 6e4  # in multiples of an even share; float16 ends at 65504


@dataclass
class LayerSums:
    """What one layer has shown so far, on its device.

    errors: fp32 [bins, H, P], summed over calls
    calls: number of them by bin
    mass: fp32 [H, V], mean softmax mass of a token of each video block, summed over calls
    """

    errors: Tensor
    calls: list[int]
    mass: Tensor


@dataclass(frozen=True)
class Scene:
    """What the first call was like; all others must be like it.

    maps: bool [V, V] of the patterns that are the same for all heads
    """

    network: Network
    layout: TokenLayout
    blocks: Blocks
    order: BlockOrder
    places: Places
    maps: dict[Pattern, Tensor]


@dataclass
class Findings:
    """Made by who calibrates, because it outlives the run; holds no activations.

    patterns: the candidates, full attention first
    tail: as the sparse run will have it
    bins: even parts of the model's noise range
    """

    patterns: tuple[Pattern, ...]
    tail: Tail | None = "row"
    bins: int = 10
    layers: dict[int, LayerSums] = field(default_factory=dict)
    scene: Scene | None = None

    def table(self, density: float, class_name: str = "", earlier: PatternTable | None = None) -> PatternTable:
        """The table with the choice for a density, averaged with an earlier one.

        raises: ValueError when nothing usable was gathered, or the earlier table is not of the same kind
        """
        if self.scene is None:
            raise ValueError("no attention of the video was seen")
        numbers = tuple(sorted(self.layers))
        sums = [self.layers[number] for number in numbers]
        calls = torch.tensor([layer.calls for layer in sums], dtype=torch.int32).T.contiguous()
        errors = torch.stack([layer.errors.cpu() for layer in sums], 1)
        mass = torch.stack([layer.mass.cpu() for layer in sums]) * self.scene.layout.tokens
        total = calls.sum(0)
        if not errors.isfinite().all() or not mass.isfinite().all():
            raise ValueError("the model's queries, keys or values are not finite")
        if earlier is not None:
            if reason := self._why_not(earlier, numbers):
                raise ValueError(reason)
            errors += earlier.errors * earlier.calls[..., None, None]
            mass += earlier.mass.float() * earlier.calls.sum(0)[:, None, None]
            calls, total = calls + earlier.calls, total + earlier.calls.sum(0)
        mean = errors / calls.clamp(min=1)[..., None, None]
        mass = (mass / total[:, None, None]).clamp(max=MOST_MASS).half()
        table = PatternTable(
            replace(self.scene.network, class_name=class_name), numbers, self.patterns, self.scene.layout.grid,
            self.scene.blocks, self.tail, density, torch.zeros(errors.shape[:3], dtype=torch.int8), self._prices(),
            _filled(mean, calls), calls, mass, self.scene.places.share.cpu(),
        )  # fmt: skip
        return table.chosen(density)

    def _why_not(self, earlier: PatternTable, numbers: tuple[int, ...]) -> str | None:
        """Why an earlier table cannot be averaged with this one."""
        scene = self.scene
        if reason := earlier.why_not(scene.network):
            return reason
        ours = {
            "candidates": (self.patterns, earlier.patterns), "layers": (numbers, earlier.layers),
            "noise bins": (self.bins, earlier.bins), "latent grids": (scene.layout.grid, earlier.grid),
            "blocks": (scene.blocks, earlier.blocks), "tails": (self.tail, earlier.tail),
        }  # fmt: skip
        for name, (now, before) in ours.items():
            if now != before:
                return f"the earlier pattern has other {name}: {_short(before)}, now {_short(now)}"
        return None

    def _prices(self) -> Tensor:
        blocks = len(self.scene.places)
        maps = self.scene.maps
        return torch.tensor([price(pattern, blocks, maps.get(pattern)) for pattern in self.patterns])


def _filled(errors: Tensor, calls: Tensor) -> Tensor:
    """Bins that saw no call of a layer get the errors of the nearest that did. errors [bins, L, H, P]"""
    number = torch.arange(len(calls))
    apart = (number[:, None] - number).abs().float()[..., None].expand(-1, -1, calls.shape[1])  # bin, other bin, layer
    nearest = apart.masked_fill(calls == 0, torch.inf).argmin(1)
    return errors[nearest, torch.arange(calls.shape[1])]


def _short(value: object) -> str:
    """A setting in an error message."""
    if isinstance(value, Blocks):
        return f"{value.order} of side {value.side or 'auto'}"
    if isinstance(value, tuple) and value and isinstance(value[0], Pattern):
        return ", ".join(pattern.name for pattern in value)
    return str(value)
