"""Convolutions over time that never look ahead, so that a clip can come in chunks of any length.

B batch   T frames   C channels   H W rows and columns      all tensors [B, T, C, H, W]

A causal 3D convolution is one 2D convolution over the time-shifted copies of a frame, stacked on channels: CPUs run it
faster than a 3D one, and what has to be kept between chunks is visible. Before the first frame there is that frame
again: a picture is a clip that stands still.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stream:
    """What the causal layers of one net keep between two chunks of one clip: the last frames that each has seen."""

    def __init__(self) -> None:
        self.tails: dict[nn.Module, Tensor] = {}

    def begun(self, layer: nn.Module) -> bool:
        """Whether a chunk has gone through this layer before."""
        return layer in self.tails

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Copied: a view would hold the whole chunk in memory."""
        self.tails[layer] = frames.clone()

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(tail.nbytes for tail in self.tails.values())


class CausalConv(nn.Module):
    """taps: frames that an output frame sees, its own and those before    side: pixels along the kernel's edge
    step, stride: in time and in space. With step 2 the first frame is on its own, then two frames become one.
    """

    def __init__(self, inside: int, outside: int, taps: int = 3, side: int = 3, step: int = 1, stride: int = 1):
        super().__init__()
        self.taps, self.step = taps, step
        self.conv = nn.Conv2d(taps * inside, outside, side, stride, side // 2)  # channels: taps, oldest first

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """x: [B, T, C, H, W], from the clip's first frame on; with a stream, the frames that come next."""
        if self.taps > 1:
            x = self.stacked(self.after_past(x, stream))
        out = self.conv(x.flatten(0, 1))
        return out.unflatten(0, x.shape[:2])

    def after_past(self, x: Tensor, stream: Stream | None) -> Tensor:
        """The frames behind those before them."""
        if stream is not None and stream.begun(self):
            x = torch.cat([stream.tails[self], x], 1)
        else:
            x = torch.cat([x[:, :1]] * (self.taps - 1) + [x], 1)
        if stream is not None:
            stream.keep(self, x[:, x.shape[1] - (self.taps - self.step) :])
        return x

    def stacked(self, x: Tensor) -> Tensor:
        """[B, T, C, H, W] -> [B, (T - taps) // step + 1, taps * C, H, W]"""
        last = x.shape[1] - self.taps
        return torch.cat([x[:, i : i + last + 1 : self.step] for i in range(self.taps)], 2)
