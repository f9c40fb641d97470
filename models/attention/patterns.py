"""The fixed attention patterns that a calibration chooses from, as maps of video blocks.

Of Sparse-vDiT (arXiv 2506.03065): full, skip, diagonal, multi-diagonal (here "places") and vertical stripes. Of
Efficient-vDiT (arXiv 2502.06155): reference frames. Differs from the papers: a map is over the blocks of any token
order, by where their tokens lie, so that nothing is sorted anew for the multi-diagonal; a band keeps its width at both
ends of the clip, where theirs is cut off; a skipped head keeps each query block's own block, where theirs gives zeros.
"""
# V video blocks   T W: latent frames, columns; rows are H here   R query blocks   X heads

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import TokenLayout
from .attention_tile import references
from .extents import Extents, extents
from .orders import BlockOrder

KINDS = ("full", "skip", "diagonal", "places", "stripes", "frames")


@dataclass(frozen=True)
class Pattern:
    """kind: one of KINDS
    amount: share of the video blocks that each query block keeps; of "frames": reference frames for each frame
    raises: ValueError for a kind that is not there, or an amount outside 0 to 1
    """

    kind: str
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"There is no attention pattern {self.kind!r}. Accepted: {', '.join(KINDS)}.")
        if not 0 <= self.amount <= 1:
            raise ValueError(f"An attention pattern keeps a share from 0 to 1, not {self.amount!r}.")

    @property
    def name(self) -> str:
        """For the user: "diagonal 25 %"."""
        if self.kind == "frames":
            return f"1 of {1 / self.amount:.0f} frames" if self.amount else "first frame"
        return f"{self.kind} {100 * self.amount:.0f} %" if self.amount else self.kind


# Of a band or of stripes; the paper does not give its own. With 0.6 among them the tiny model's layers have 9 % less
# expected error at density 0.5, 4 % at 0.3 and the same at 0.2.
SHARES = (0.15, 0.25, 0.4, 0.6)
HEADS = (Pattern("full"), Pattern("skip"), *(Pattern(k, s) for k in ("diagonal", "places", "stripes") for s in SHARES))
FRAMES = (Pattern("full"), *(Pattern("frames", 1 / n) for n in (2, 3, 4, 6, 8)), Pattern("frames"))


@dataclass(frozen=True)
class Places:
    """Where the video blocks of a layout lie.

    box: their extents
    grid: T H W
    """

    box: Extents
    grid: tuple[int, int, int]

    @property
    def centre(self) -> Tensor:
        """Mean frame, row and column of the tokens: fp32 [V, 3]."""
        return self.box.centre

    def __len__(self) -> int:
        return len(self.centre)

    @property
    def share(self) -> Tensor:
        """The centres as shares of the clip, which other grids have too: fp32 [V, 3], 0 to 1."""
        return (self.centre + 0.5) / torch.tensor(self.grid, device=self.centre.device)


def places_of(order: BlockOrder, layout: TokenLayout) -> Places:
    """On the order's device."""
    return Places(extents(order, layout), layout.grid)


def blocks_kept(pattern: Pattern, blocks: int) -> int:
    """Key blocks that a query block keeps under a band or stripes of `blocks` blocks, its own among them."""
    return max(1, round(pattern.amount * blocks))


def pattern_map(pattern: Pattern, places: Places) -> Tensor:
    """The key blocks that each query block keeps, for every kind but stripes: bool [V, V]."""
    own = torch.eye(len(places), dtype=torch.bool, device=places.centre.device)
    if pattern.kind == "full":
        return torch.ones_like(own)
    if pattern.kind == "skip":
        return own
    if pattern.kind == "frames":
        frames = places.grid[0]
        return places.box.joined(references(frames, round(pattern.amount * frames)))
    distance = _along_raster(places) if pattern.kind == "diagonal" else _within_frame(places)
    nearest = distance.masked_fill_(own, -1).argsort(dim=-1, stable=True)[:, : blocks_kept(pattern, len(places))]
    return torch.zeros_like(own).scatter_(-1, nearest, True)


def stripe_columns(mass: Tensor) -> Tensor:
    """Key blocks in the order in which stripes take them: by mass.

    The first frame is not taken before the others: on the tiny text-to-video model that made the error of a head 8 to
    14 % larger, with a tail. Where it matters, its mass says so.

    mass: [..., V], what all queries together give a token of the block
    returns: int64 [..., V]
    """
    return mass.argsort(dim=-1, descending=True, stable=True)


def stripes_taken(pattern: Pattern, blocks: int) -> int:
    """Columns of stripes: one less than the share, so that the own block is within it; one at least."""
    return max(1, blocks_kept(pattern, blocks) - 1)


def stripe_map(columns: Tensor, pattern: Pattern, own: Tensor) -> Tensor:
    """As `pattern_map`, for stripes and for some query blocks: bool [X, R, V].

    columns: int64 [X, V], see `stripe_columns`
    own: bool [R, V], the own block of each query block
    """
    taken = columns[:, None, : stripes_taken(pattern, columns.shape[-1])].expand(-1, len(own), -1)
    return own.repeat(len(columns), 1, 1).scatter_(-1, taken, True)


def price(pattern: Pattern, blocks: int, keep: Tensor | None) -> float:
    """Share of the pairs of video blocks that a pattern computes. keep: its map, for patterns that have one for all."""
    if pattern.kind == "full":
        return 1.0
    if pattern.kind != "stripes":
        return float(keep.float().mean())
    taken = stripes_taken(pattern, blocks)
    return (taken * blocks + blocks - taken) / blocks**2  # the rows of other blocks keep their own on top


def _along_raster(places: Places) -> Tensor:
    """Tokens of the raster between the mean tokens of two blocks: fp32 [V, V]."""
    _, rows, columns = places.grid
    frame, row, column = places.centre.unbind(-1)
    token = (frame * rows + row) * columns + column
    return (token[:, None] - token).abs()


def _within_frame(places: Places) -> Tensor:
    """Squared distance of two places in the frame, in tokens; of equal ones, the nearer in time: fp32 [V, V]."""
    row, column = ((x[:, None] - x).square() for x in places.centre[:, 1:].unbind(-1))
    gap = (places.centre[:, None, 0] - places.centre[:, 0]).abs()
    return row + column + 0.01 * gap / places.grid[0]  # other places are half a token apart, or more
