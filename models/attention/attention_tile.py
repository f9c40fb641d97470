"""Attention tiles of Efficient-vDiT (arXiv 2502.06155): a few reference frames see and are seen by every frame.

All other frames see themselves and the reference frames. The paper trains the model for this mask and searches the
number of references for each layer; here it is used as it is, so a tail is advisable. The frames that are references
are not told: these give the published sparsities. Differs: blocks never cross a frame in the orders tile and raster,
so the kept share is that of frames; in the other orders a block lies in several frames, and a pair of blocks is kept
if any frame of one is joined to any frame of the other.
"""
# T latent frames   V video blocks

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from .extents import Extents, extents
from .job import Job
from .registry import Method, method
from .static import static_plan

PLACEMENTS = ("stride", "even")


@method("attention_tile")
@dataclass(frozen=True)
class AttentionTile(Method):
    """density: share of the video-to-video blocks. As many references as stay below it, one at least: with T frames
        the steps are about 2 / T; 0: by reference_frames, or by preset
    reference_frames: their number; 0: by density
    placement: one of PLACEMENTS, see `references`
    """

    density: float = 0.0
    reference_frames: int = 0
    placement: str = "stride"

    label: ClassVar[str] = "Attention Tile"
    summary: ClassVar[str] = "keeps each frame itself and a few reference frames that all others share"

    @property
    def own_rule(self) -> str:
        return "reference_frames" if self.reference_frames else ""

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of attention blocks computed exactly; as many reference frames as stay below "
                           "it, at least one. Lower is faster and further from dense. 0: reference_frames decides."),
            io.Int.Input("reference_frames", default=0, min=0, max=256,
                         tooltip="Latent frames that see and are seen by all; counts at density 0. More is slower and "
                         "closer to dense: of 21 frames 2 keep 23 % of attention, 4 keep 38 %, 6 keep 52 %. 0: as many "
                         "as the preset density of the model family allows."),
            io.Combo.Input("placement", options=list(PLACEMENTS), default="stride",
                           tooltip="Where reference frames lie, the first frame always among them. stride: a whole "
                           "number of frames apart, which can give fewer of them (as published); even: exactly that "
                           "many, spread over the clip."),
        ]  # fmt: skip

    def why_not(self, call: AttentionCall) -> str | None:
        return "a single frame, which attention tiles keep whole" if call.layout.grid[0] == 1 else None

    def plan(self, job: Job) -> BlockPlan:
        call, order = job.call, job.order
        frames, device = call.layout.grid[0], str(order.slots.device)

        def keep(name: str, build):
            return call.run.state((self, job.blocks, name), device, -1, call.layout.key, None, build)

        box = keep("box", lambda: extents(order, call.layout))
        if job.density is None:
            count = self.reference_frames
        else:
            count = most_references(keep("shares", lambda: self._shares(box, frames)), job.density)
        chosen = references(frames, count, self.placement)
        return keep(f"plan {chosen}", lambda: static_plan(order, box.joined(chosen)))

    def _shares(self, box: Extents, frames: int) -> list[float]:
        """The share of pairs that 1, 2, ... reference frames keep."""
        sets = (references(frames, count, self.placement) for count in range(1, frames + 1))
        return torch.stack([box.joined(chosen).float().mean() for chosen in sets]).tolist()


def references(frames: int, count: int, placement: str = "stride") -> tuple[int, ...]:
    """Reference frames, the first frame always among them; `count` is taken as 1 to `frames`.

    stride: every ceil(frames / count)-th, which can be fewer than count; even: frame floor(i frames / count)
    """
    count = min(max(count, 1), frames)
    if placement == "stride":
        return tuple(range(0, frames, -(-frames // count)))
    return tuple(i * frames // count for i in range(count))


def most_references(shares: list[float], density: float) -> int:
    """How many reference frames keep the largest share that is not above the density; 1 if all do.

    shares: of 1, 2, ... frames
    """
    within = [(share, count) for count, share in enumerate(shares, 1) if share <= density + 1e-6]
    return max(within)[1] if within else 1
