"""Radial Attention (arXiv 2506.19852): windows within frames that halve as the distance of two frames doubles.

Attention energy falls with distance in time and space, so a frame sees itself and the next ones whole, others through a
band of the raster around the same place, and beyond some distance only every second, fourth, ... frame. All see the
first frame whole. Differs from the published code: blocks of any order, resolution and length are kept by the distance
of their mean tokens, where theirs counts token pairs and cuts the clip to whole blocks. Frames are thinned out where a
window would be narrower than a block of any size, there one of 128 tokens. A window of rows and columns in the frame's
proportions, of as many tokens as the band, kept 7, 5 and 8 points less of the softmax mass on the tiny model (2 x 2
tiles, densities 0.5, 0.3 and 0.2).
"""
# T W: latent frames, columns; rows are H here   V video blocks

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ..layout import TokenLayout
from .extents import Extents, extents
from .job import Job
from .registry import Method, method
from .select import budget
from .static import static_plan

LAST = 1e6  # scale at which pairs of frames that get no window are kept: after all others


@method("radial")
@dataclass(frozen=True)
class Radial(Method):
    """density: share of the video-to-video blocks, met to a block: all windows are scaled together, the first frame's
        too, and pairs at the same distance come in a fixed random order. 0: the windows of `decay`
    decay: width of the windows beyond the next frame
    first_frame: every query sees the first frame through the window of a next one
    """

    density: float = 0.0
    decay: float = 0.2
    first_frame: bool = True

    label: ClassVar[str] = "Radial Attention"
    summary: ClassVar[str] = "keeps near frames whole and a band of far ones, narrower with distance"
    own_rule: ClassVar[str] = "decay"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly; all windows are widened or narrowed to "
                           "meet it. Lower is faster and further from dense; 0.2 to 0.3 is typical. 0: decay decides."),
            io.Float.Input("decay", default=0.2, min=0.01, max=4.0, step=0.01,
                           tooltip="Width of the windows in frames that are two and more away, halved as the distance "
                           "doubles; counts at density 0. Higher is slower and closer to dense. Published: 0.2 for Wan "
                           "2.1 (24 % of a 720p clip in the order raster, 32 % in tile), 0.8 for Wan 2.2, 0.95 for "
                           "HunyuanVideo."),
            io.Boolean.Input("first_frame", default=True,
                             tooltip="Every query sees the first frame as it sees the next one, which holds a clip to "
                             "its beginning. As published for Wan."),
        ]  # fmt: skip

    def plan(self, job: Job) -> BlockPlan:
        call, order = job.call, job.order

        def energy() -> Energy:
            box = extents(order, call.layout)
            return Energy(window_scale(box, call.layout, order.slots.shape[2], self.decay, self.first_frame))

        kept = call.run.state((self, job.blocks), str(order.slots.device), -1, call.layout.key, None, energy)
        count = None if job.density is None else budget(job.density, len(kept.scale))
        latest = kept.plan
        if latest is None or latest[0] != count:
            latest = kept.plan = count, static_plan(order, kept.within(count))
        return latest[1]


@dataclass
class Energy:
    """What a run keeps. Of plans only the latest: an error target asks for another density in every call.

    scale: fp32 [V, V], of `window_scale`
    """

    scale: Tensor
    rank: Tensor | None = None
    plan: tuple[int | None, BlockPlan] | None = field(default=None, repr=False)

    def within(self, count: int | None) -> Tensor:
        """The `count` pairs that the narrowest windows take in; None: those of the windows as they are. bool [V, V]"""
        if count is None:
            return self.scale <= 1
        if self.rank is None:
            self.rank = _rank(self.scale.flatten()).view_as(self.scale)
        return self.rank < count


def window_scale(box: Extents, layout: TokenLayout, block: int, decay: float, first_frame: bool = True) -> Tensor:
    """By how much all windows must be scaled to take in a pair of blocks: fp32 [V, V], below 0 for a block itself.

    block: tokens; no window is narrower
    """
    frame, row, column = box.centre.unbind(-1)
    distance = (frame[:, None] - frame).abs().floor()
    if first_frame:
        distance = torch.where(box.holds_frame(0), distance.clamp(max=1), distance)
    _, rows, columns = layout.grid
    token = row * columns + column
    scale = (token[:, None] - token).abs() / half_width(distance, rows * columns, block, decay)
    scale += LAST * left_out(distance, rows * columns, block)
    return scale.fill_diagonal_(-1)


def half_width(distance: Tensor, frame_tokens: int, block: int, decay: float) -> Tensor:
    """Tokens of the raster on either side that a query sees of a frame at a distance.

    distance: in frames, whole numbers; 0 and 1 are seen whole
    """
    width = (_span(distance, frame_tokens) * decay).clamp(min=block)
    return torch.where(distance <= 1, frame_tokens, width.clamp(max=frame_tokens))


def left_out(distance: Tensor, frame_tokens: int, block: int) -> Tensor:
    """True for distances at which a frame is not seen, as a window there would be narrower than a block: bool."""
    every = (block / _span(distance, frame_tokens)).floor().clamp(min=1)
    return (distance > 1) & (distance % every != 0)


def _span(distance: Tensor, frame_tokens: int) -> Tensor:
    """The next power of two above the tokens of a frame, halved with each binary digit of the distance."""
    return 2.0 ** (frame_tokens.bit_length() - torch.frexp(distance).exponent)


def _rank(scale: Tensor) -> Tensor:
    """Place of each entry from the lowest; equal ones in a random order that is the same in every run."""
    mixed = torch.randperm(len(scale), generator=torch.Generator().manual_seed(0)).to(scale.device)
    rank = torch.empty_like(mixed)
    rank[mixed[scale[mixed].argsort(stable=True)]] = torch.arange(len(scale), device=scale.device)
    return rank
