"""Where in the video each block lies: the box of frames, rows and columns around its tokens.

Static masks, forced neighbours and pictures of a plan need no more of a token order than this.
"""
# V video blocks   T W: latent frames, columns; rows are H here

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import TokenLayout
from .orders import BlockOrder


@dataclass(frozen=True)
class Extents:
    """low, high: int64 [V, 3], first and last frame, row and column of each video block
    centre: fp32 [V, 3], their means over its tokens
    """

    low: Tensor
    high: Tensor
    centre: Tensor

    def overlap(self, axis: int) -> Tensor:
        """Pairs of blocks that share a frame (axis 0), row (1) or column (2): bool [V, V]."""
        low, high = self.low[:, axis], self.high[:, axis]
        return (low[:, None] <= high) & (low <= high[:, None])

    def gap(self, axis: int) -> Tensor:
        """Frames, rows or columns between two blocks, 0 where they share one: int64 [V, V]."""
        low, high = self.low[:, axis], self.high[:, axis]
        return torch.maximum(low[:, None] - high, low - high[:, None]).clamp(min=0)

    def neighbours(self) -> Tensor:
        """Blocks that touch in one frame, also at a corner, and each block itself: bool [V, V]."""
        return self.overlap(0) & (self.gap(1) <= 1) & (self.gap(2) <= 1)

    def joined(self, frames: Iterable[int]) -> Tensor:
        """Pairs of blocks that share a frame, or of which one touches one of `frames`: bool [V, V]."""
        touches = torch.zeros_like(self.low[:, 0], dtype=torch.bool)
        for frame in frames:
            touches |= self.holds_frame(frame)
        return self.overlap(0) | touches[:, None] | touches

    def holds_frame(self, frame: int) -> Tensor:
        """bool [V]"""
        return (self.low[:, 0] <= frame) & (self.high[:, 0] >= frame)


def extents(order: BlockOrder, layout: TokenLayout) -> Extents:
    """The boxes of the video blocks, on the order's device."""
    first, last = order.video
    slots = order.slots[0, first:last].long()
    token = slots - layout.video.start
    _, rows, columns = layout.grid
    place = torch.stack((token // (rows * columns), token // columns % rows, token % columns), -1)  # V S 3
    pad = (slots < 0)[..., None]
    centre = place.masked_fill(pad, 0).sum(1) / order.live[0, first:last, None]
    return Extents(place.masked_fill(pad, 1 << 40).amin(1), place.masked_fill(pad, -1).amax(1), centre)
