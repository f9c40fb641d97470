"""The two bands of Sparse VideoGen (arXiv 2502.01776) on blocks: frame after frame, and place after place through time.

A band of w tokens on either side keeps 1 - (1 - w / N)^2 of the pairs. Here every pair of blocks is told the density at
which the band has grown to it, so that any density is met whatever the grid and whatever is kept besides.
"""
# N = T H W tokens of the video   P = H W places of a frame   U V: blocks of queries and of keys   S slots per block
# index 0 of two: spatial, 1: temporal   R rows

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.block_plan import block_of
from ..layout import Grid, arrange
from .orders import raster, token_major

GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill 0 to 1 evenly however many they are
NEVER = 2.0  # no density


@dataclass(frozen=True)
class Bands:
    """Blocks of both kinds of heads, padded to the same number, and which pairs a density keeps.

    q_slots, k_slots: int32 [2, U, S] and [2, V, S], token numbers from the start of the video, -1 is padding
    entry: fp32 [2, U, V], the least density that keeps the pair
    steps: for 1, 2, .. V key blocks the least density that keeps so many for some query block, ascending
    rows: int64 [R], sampled tokens, from all frames where R is not less than T
    q_block, k_block: int64 [2, R] and [2, N], the blocks that hold the rows and the tokens
    """

    q_slots: Tensor
    k_slots: Tensor
    entry: Tensor
    steps: list[float]
    rows: Tensor
    q_block: Tensor
    k_block: Tensor

    def to(self, device: torch.device | str) -> Bands:
        moved = (getattr(self, field.name) for field in fields(self))
        return Bands(*(x.to(device) if isinstance(x, Tensor) else x for x in moved))

    def longest(self, density: float) -> int:
        """The most key blocks that a query block keeps, known without asking the device."""
        return bisect_right(self.steps, density * (1 + 1e-6))  # the entries are fp32


def make_bands(grid: Grid, size: int, first_frame: bool, rows: int) -> Bands:
    """size: S of the blocks
    first_frame: its keys are kept by all; the band is the narrower for it
    rows: R, of the trial
    """
    frames, height, width = grid
    places = height * width
    space, time = _slots(raster, grid, size), _slots(token_major, grid, size)
    keys, sinks = [space, time], 0
    if first_frame:
        opening = _slots(raster, (1, height, width), size)
        later = _slots(token_major, (frames - 1, height, width), size)
        keys[1] = _stacked([opening, torch.where(later < 0, -1, later + places)], torch.cat)
        sinks = len(opening)
    token = torch.arange(frames * places)
    places_in = token, token % places * frames + token // places
    entry = [_entry(q, k, at, sinks) for q, k, at in zip((space, time), keys, places_in, strict=True)]
    u, v = (max(e.shape[axis] for e in entry) for axis in (0, 1))
    entry = torch.stack([pad(e, (0, v - e.shape[1], 0, u - e.shape[0]), value=NEVER) for e in entry])
    q_slots, k_slots = _stacked([space, time], torch.stack), _stacked(keys, torch.stack)
    sample = sampled_rows(frames, places, rows)
    return Bands(
        q_slots, k_slots, entry, entry.flatten(0, 1).sort(-1).values.amin(0).tolist(), sample,
        block_of(q_slots, sample), block_of(k_slots, token),
    )  # fmt: skip


def sampled_rows(frames: int, places: int, rows: int) -> Tensor:
    """Tokens of as many frames as there are rows for, evenly spread, at places that are too: int64 [rows]."""
    number = torch.arange(rows)
    place = (number.double() * GOLDEN % 1 * places).long()
    return number * frames // rows * places + place


def _slots(order, grid: Grid, size: int) -> Tensor:
    return order(arrange([("video", grid)]), size).slots[0]


def _stacked(tables: list[Tensor], join) -> Tensor:
    """Slot tables of equal sizes, padded."""
    blocks = max(map(len, tables)) if join is torch.stack else 0
    size = max(x.shape[1] for x in tables)
    return join([pad(x, (0, size - x.shape[1], 0, max(0, blocks - len(x))), value=-1) for x in tables])


def _entry(q_slots: Tensor, k_slots: Tensor, at: Tensor, sinks: int) -> Tensor:
    """The least density that keeps each pair: fp32 [U, V].

    Pairs enter by the distance of their centres; of equally distant ones, those of some query blocks all over the video
    before those of others, so that the band's edge may lie anywhere. The nearest key block and the sinks are always in.

    at: int64 [N], where each token stands in the order of the band
    sinks: number of key blocks, the first ones, that all keep
    """
    q_centre, k_centre = _centre(q_slots, at), _centre(k_slots, at)
    turn = torch.arange(len(q_slots), dtype=torch.float64) * GOLDEN % 1
    apart = (q_centre[:, None] - k_centre).abs() + 1e-3 * turn[:, None]
    nearest = apart[:, sinks:].argmin(1, keepdim=True) + sinks
    apart[:, :sinks] = -1
    apart.scatter_(1, nearest, -1)
    q_live, k_live = ((slots >= 0).sum(-1).double() for slots in (q_slots, k_slots))
    cost = (q_live[:, None] * k_live / len(at) ** 2).flatten()
    order = apart.flatten().argsort(stable=True)
    entry = torch.empty_like(cost)
    entry[order] = cost[order].cumsum(0) - cost[order] / 2
    return entry.view(apart.shape).masked_fill_(apart < 0, 0).float()


def _centre(slots: Tensor, at: Tensor) -> Tensor:
    """Mean place of the tokens of each block: fp64 [K]."""
    place = at[slots.clamp(min=0).long()].double().masked_fill_(slots < 0, 0)
    return place.sum(-1) / (slots >= 0).sum(-1)
