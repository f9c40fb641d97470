"""The basis in which a weight is quantised, and how to come back: W x = (W B^-1)(B x).

A basis multiplies channels, puts them into another order, and rotates blocks of them. Formats look only at what comes
out; LoRA and every other reader of a weight see the original one.

Source: channel mask and Hadamard rotation of ViDiT-Q (arXiv 2406.02540, its released kernels; here the Hadamard matrix
is of blocks, and its random signs belong into the mask); orthogonal turns before the order as in DuQuant (arXiv
2406.01721), which LRQ-DiT (arXiv 2508.03485) uses for layers with salient channels.
"""
# N outputs   K inputs   S block

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...kernels.block_hadamard import rotate


@dataclass(frozen=True)
class Basis:
    """block: of the Hadamard rotation at the end, 1: none
    mask: [K] float32 that multiplies activations and divides weights, nowhere 0; None: all 1
    turns: [K/S, S, S] orthogonal, applied to blocks after the mask; None: none
    order: [K] int32, place i of the new order is channel order[i]; None: as it is
    """

    block: int = 1
    mask: Tensor | None = None
    turns: Tensor | None = None
    order: Tensor | None = None

    @property
    def plain(self) -> bool:
        """True when there is nothing but the rotation of blocks."""
        return self.mask is None and self.turns is None and self.order is None

    def before_rotation(self, x: Tensor) -> Tensor:
        """Activations [..., K] up to the Hadamard rotation, which kernels fuse."""
        if self.mask is not None:
            x = x * self.mask.to(x.dtype)
        return self._ordered(x)

    def activation(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., K] in this basis."""
        return rotate(self.before_rotation(x), self.block)

    def weight(self, weight: Tensor) -> Tensor:
        """[N, K] float -> [N, K] in this basis."""
        if self.mask is not None:
            weight = weight / self.mask.to(weight.dtype)
        return rotate(self._ordered(weight), self.block)

    def original(self, weight: Tensor) -> Tensor:
        """The inverse of `weight`."""
        weight = rotate(weight, self.block)
        if self.order is not None:
            back = weight.new_empty(weight.shape)
            back[:, self.order.long()] = weight
            weight = back
        if self.turns is not None:
            weight = _turned(weight, self.turns.transpose(1, 2))
        return weight if self.mask is None else weight * self.mask.to(weight.dtype)

    def _ordered(self, x: Tensor) -> Tensor:
        if self.turns is not None:
            x = _turned(x, self.turns)
        return x if self.order is None else x.index_select(-1, self.order)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Blocks of channels by one matrix each: [..., K], [K/S, S, S] -> [..., K]"""
    blocks = x.unflatten(-1, (turns.shape[0], -1))
    return (blocks.unsqueeze(-2) @ turns.to(x.dtype)).squeeze(-2).flatten(-2)
