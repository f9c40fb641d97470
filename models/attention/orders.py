"""Token orders: which tokens of a layout share a block, as an index table that kernels gather by.

Every segment starts a fresh block, so no block mixes kinds. Extents are cut into parts that differ by one token at
most, not into full parts and a rest: the number of blocks is the same, no block is a sliver, and a share of blocks is
nearly the same share of tokens.
"""
# N tokens   K blocks   S slots per block   R V video blocks of queries, of keys
# T W: latent frames, columns; rows are H here

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...kernels.block_plan import block_of


class Run(Protocol):
    """A segment: tokens start..stop of one kind."""

    @property
    def kind(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


class Layout(Protocol):
    """What an order reads of `models.layout.TokenLayout`: segments end to end, one of them video with grid T H W."""

    @property
    def segments(self) -> Sequence[Run]: ...
    @property
    def grid(self) -> tuple[int, int, int]: ...


@dataclass(frozen=True)
class BlockOrder:
    """Slot -> token. Blocks follow the segments; S is the size of the largest block."""

    slots: Tensor  # int32 [1, K, S], -1 is padding
    live: Tensor  # int32 [1, K], tokens of each block, in its first slots
    video: tuple[int, int]  # first, past the last video block

    @property
    def other(self) -> tuple[tuple[int, int], ...]:
        """The runs of blocks before and after the video, where there are any."""
        first, last = self.video
        return tuple(run for run in ((0, first), (last, self.slots.shape[1])) if run[0] < run[1])

    def to(self, device: torch.device | str) -> BlockOrder:
        return BlockOrder(self.slots.to(device), self.live.to(device), self.video)


@dataclass(frozen=True)
class QueryBlocks:
    """Blocks of queries that are not those of the keys.

    own: bool [R, V], which video blocks of the keys hold a token of each of these
    """

    order: BlockOrder
    own: Tensor

    @classmethod
    def over(cls, order: BlockOrder, keys: BlockOrder) -> QueryBlocks:
        return cls(order, shared_tokens(order, keys))


def shared_tokens(one: BlockOrder, other: BlockOrder) -> Tensor:
    """Pairs of video blocks of two orders of one layout that share a token: bool [V, V']"""
    (first, last), (start, stop) = one.video, other.video
    slots = one.slots[:, first:last]
    block = block_of(other.slots, slots.clamp(min=0).flatten().long()).view(slots.shape[1:])
    place = torch.where(slots[0] < 0, stop, block) - start
    shared = torch.zeros(last - first, stop - start + 1, dtype=torch.bool, device=slots.device)
    return shared.scatter_(1, place, True)[:, :-1]


def raster(layout: Layout, size: int = 64) -> BlockOrder:
    """Runs of at most `size` consecutive tokens that never leave their frame."""
    frames, rows, columns = layout.grid
    return _order(layout, _boxes((frames, rows * columns), (1, size)))


def tile(layout: Layout, side: int | tuple[int, int] = 8) -> BlockOrder:
    """Tiles of one frame, at most side x side (rows, columns); by frame, tile row, tile column, then row by row."""
    rows, columns = (side, side) if isinstance(side, int) else side
    return _order(layout, _boxes(layout.grid, (1, rows, columns)))


def strip(layout: Layout, size: int = 64, side: int | None = None) -> BlockOrder:
    """Runs of one frame, of at most `size` tokens, along a path that folds through its bands from side to side.

    Near squares like tiles, but all blocks of a frame are equal to one token, so few slots stay empty: 1 % of those of
    720p, where tiles of 8 x 8 leave 6 %, and 3 % of 480p, where they leave 13 %.

    side: rows of a band, at most; None: as many as a square of `size` has
    """
    _, rows, columns = layout.grid
    side = max(1, round(size**0.5)) if side is None else side
    band = _parts(rows, side)
    first = torch.searchsorted(band, torch.arange(int(band[-1]) + 2))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    height = (first[1:] - first[:-1])[band[y]]
    across = torch.where(band[y] % 2 == 0, x, columns - 1 - x)
    within = y - first[band[y]]
    within = torch.where(across % 2 == 0, within, height - 1 - within)
    number = _parts(rows * columns, size)[(first[band[y]] * columns + across * height + within).flatten()]
    return _order(layout, (torch.arange(layout.grid[0])[:, None] * (int(number.max()) + 1) + number).flatten())


def cube(layout: Layout, side: int | tuple[int, int, int] = 4) -> BlockOrder:
    """Boxes of at most side x side x side (frames, rows, columns), in raster order, each in raster order inside."""
    return _order(layout, _boxes(layout.grid, (side, side, side) if isinstance(side, int) else side))


def token_major(layout: Layout, size: int = 64) -> BlockOrder:
    """Places of a frame through time: each block holds the same few places in all frames, or one place in some frames.

    The order in which SVG1 and Sparse-vDiT see temporal heads; there as one long run, here cut at whole places.
    """
    frames, rows, columns = layout.grid
    number = _boxes((rows * columns, frames), (max(1, size // frames), size))
    return _order(layout, number.view(rows * columns, frames).T.flatten())


def morton(layout: Layout, size: int = 64) -> BlockOrder:
    """Runs of at most `size` tokens along the Z curve through frames, rows and columns; runs of equal length."""
    frames, rows, columns = layout.grid
    t, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, rows, columns)), indexing="ij")
    code = torch.zeros_like(t)
    for bit in range(max(layout.grid).bit_length()):
        for axis, place in enumerate((x, y, t)):
            code |= ((place >> bit) & 1) << (3 * bit + axis)
    number = torch.empty(code.numel(), dtype=torch.int64)
    number[code.flatten().argsort()] = _parts(code.numel(), size)
    return _order(layout, number)


def _parts(extent: int, side: int) -> Tensor:
    """Part number of each of `extent` places, in as few parts of at most `side` as will do: int64 [extent]."""
    if side < 1:
        raise ValueError(f"A block side must be 1 token or more, not {side}.")
    count = -(-extent // side)
    size, longer = divmod(extent, count)
    sizes = torch.full((count,), size)
    sizes[:longer] += 1
    return torch.arange(count).repeat_interleave(sizes)


def _boxes(extents: tuple[int, ...], sides: tuple[int, ...]) -> Tensor:
    """Box number of each token of a raster over `extents`, boxes in raster order: int64 [product of extents]."""
    number = torch.zeros(1, dtype=torch.int64)
    for extent, side in zip(extents, sides, strict=True):
        part = _parts(extent, side)
        number = (number[:, None] * (part[-1] + 1) + part).flatten()
    return number


def _order(layout: Layout, video: Tensor) -> BlockOrder:
    """Blocks of all segments; those that are not video get runs no longer than the largest video block.

    video: block number of each video token, int64 [T * H * W]
    """
    longest = int(video.bincount().max())
    numbers, count = [], 0
    for segment in layout.segments:
        number = video if segment.kind == "video" else _parts(segment.stop - segment.start, longest)
        numbers.append(number + count)
        if segment.kind == "video":
            span = count, count + int(number.max()) + 1
        count += int(number.max()) + 1
    block = torch.cat(numbers)
    live = block.bincount()
    token = block.argsort(stable=True)
    slot = torch.arange(len(block)) - (live.cumsum(0) - live)[block[token]]
    slots = torch.full((count, int(live.max())), -1, dtype=torch.int32)
    slots[block[token], slot] = token.int()
    return BlockOrder(slots[None], live.int()[None], span)
