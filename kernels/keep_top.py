"""Which columns of each row are kept: from scores of block pairs to the ascending lists that a BlockPlan holds.

Rows are blocks of queries, columns of keys. A row keeps all columns that are not video, its own, and of the other
video columns those that score highest; some rows of a head get one more, so that a budget is met that does not divide
evenly.
"""
# G heads   R rows   V video columns   K columns, all blocks   C entries of a list

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_keep_top
from .dispatch import Backend, Dispatch

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class KeepCall:
    """The arguments of `keep_top`."""

    score: Tensor
    each: int
    spare: int = 0
    first: int = 0
    last: int | None = None
    forced: Tensor | None = None
    own: bool = True

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.score

    @property
    def video(self) -> int:
        """V."""
        return (self.score.shape[2] if self.last is None else self.last) - self.first

    @property
    def width(self) -> int:
        """C."""
        return self.score.shape[2] - self.video + self.each + (self.spare > 0)

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        score, forced = self.score, self.forced
        if score.ndim != 3 or score.dtype != torch.float32:
            return f"the scores are {score.dtype} with {score.ndim} dims; it takes float32 [G, V, K]"
        (rows, columns), video = score.shape[1:], self.video
        if not 0 <= self.first <= self.first + video <= columns:
            return f"{video} video columns from {self.first} on do not lie within {columns}"
        if self.own and rows != video:
            return f"each row has a column of its own, and there are {rows} rows and {video} video columns"
        if not 1 <= self.each <= video - (self.spare > 0) or not 0 <= self.spare <= rows:
            return f"{self.each} columns in each of {rows} rows and {self.spare} more are not to be had of {video}"
        if forced is not None and (forced.dtype != torch.bool or forced.shape != (rows, video)):
            return f"what is forced is {forced.dtype} {list(forced.shape)}; it must be bool {[rows, video]}"
        return None


def keep_top_reference(
    score: Tensor,
    each: int,
    spare: int = 0,
    *,
    first: int = 0,
    last: int | None = None,
    forced: Tensor | None = None,
    own: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """One row at a time; the contract is that of `keep_top`."""
    (heads, rows, columns), last = score.shape, score.shape[2] if last is None else last
    finite, video = score.nan_to_num(nan=-LARGEST), range(last - first)
    before = torch.zeros(rows, len(video)).bool().tolist() if forced is None else forced.tolist()
    sinks = [*range(first), *range(last, columns)]
    found: list[list[list[int]]] = []
    for g in range(heads):
        ranked, worth = [], []
        for i in range(rows):
            value = finite[g, i, first:last].tolist()
            ranked.append(sorted(video, key=lambda j: (j != i if own else 0, not before[i][j], -value[j], j)))
            if spare:
                share = score[g, i].softmax(-1).nan_to_num(0)[first + ranked[i][each]]
                worth.append(float(share) + before[i][ranked[i][each]])
        more = set(sorted(range(rows), key=lambda i: (-worth[i], i))[:spare] if spare else ())
        kept = ([first + j for j in ranked[i][: each + (i in more)]] for i in range(rows))
        found.append([sorted(sinks + row) for row in kept])
    width = len(sinks) + each + bool(spare)
    cols = torch.tensor([[row + [columns] * (width - len(row)) for row in head] for head in found], dtype=torch.int32)
    counts = torch.tensor([[len(row) for row in head] for head in found], dtype=torch.int32) if spare else None
    return cols, counts


def keep_top(
    score: Tensor,
    each: int,
    spare: int = 0,
    *,
    first: int = 0,
    last: int | None = None,
    forced: Tensor | None = None,
    own: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The own column, then forced ones, then those of the highest scores; of equal scores the first columns.

    The `spare` more go to the rows whose next best column is forced, then by its share of the row's softmax over all K
    columns; of equal rows to the first. Minus infinity and NaN score least, infinity highest, so that whatever comes,
    the lists are sound.

    score: fp32 [G, R, K]
    each: video columns of every row, the own one among them
    spare: rows of each head that get one more
    first, last: the video columns; None: up to K
    forced: bool [R, V], of the video columns; where there are more than a row has room for, the highest of them
    own: row i has column first + i of its own, which takes R = V
    backend: the name of one of BACKENDS, which then must take the call
    returns: columns int32 [G, R, C], ascending, C = K - V + each, and 1 where there are spare ones; K in the last place
        of a row without one more; numbers of columns int32 [G, R], None where all rows have C
    raises: ValueError with the reason of `KeepCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(KeepCall(score, each, spare, first, last, forced, own), backend)


def _in_torch(call: KeepCall) -> tuple[Tensor, Tensor | None]:
    """By a partial sort. A head of 1260 x 1260 on one CPU core: 27 ms at 126 columns and some more, 38 ms at 252."""
    score, first = call.score, call.first
    (heads, rows, columns), device = score.shape, score.device
    best, short = _best(call, _competing(call))
    kept = (best + first).masked_fill_(best == call.video, columns).int()
    runs = (0, first), (first + call.video, columns)
    sinks = torch.cat([torch.arange(*run, dtype=torch.int32, device=device) for run in runs])
    cols = torch.cat((sinks.expand(heads, rows, -1), kept), -1).sort(-1).values
    return cols, None if short is None else cols.shape[-1] - short.int()


def _competing(call: KeepCall) -> Tensor:
    """Scores of the video columns, finite but for infinity at what comes first: the own column, and what is forced.

    Where more is forced than a row has room for, it competes alone, and all else is minus infinity.
    """
    score = call.score[..., call.first : call.first + call.video].nan_to_num(nan=-LARGEST)
    if call.forced is not None:
        forced = call.forced.clone().fill_diagonal_(False) if call.own else call.forced
        tight = forced.sum(-1, keepdim=True) > call.each - call.own
        score.masked_fill_(forced & ~tight, torch.inf).masked_fill_(~forced & tight, -torch.inf)
    if call.own:
        score.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return score


def _best(call: KeepCall, score: Tensor) -> tuple[Tensor, Tensor | None]:
    """int64 [G, R, each or each + 1] columns, V in place of one more that is not granted; bool [G, R]: not granted."""
    if not call.spare:
        return _highest(score, call.each), None
    best = _highest(score, call.each + 1, last_apart=True)
    following = best[..., -1:]
    worth = call.score.softmax(-1).gather(-1, following + call.first)[..., 0].nan_to_num_(0)
    if call.forced is not None:
        worth += call.forced.expand_as(score).gather(-1, following)[..., 0]
    granted = worth.sort(dim=-1, descending=True, stable=True).indices[:, : call.spare]
    short = torch.ones(worth.shape, dtype=torch.bool, device=score.device).scatter_(1, granted, False)
    return torch.cat((best[..., :-1], following.masked_fill(short[..., None], call.video)), -1), short


def _highest(score: Tensor, count: int, last_apart: bool = False) -> Tensor:
    """Columns of the `count` highest scores of each row, of equal ones the first: int64 [..., count].

    torch.topk leaves open which of equal scores it takes. On the CPU it runs, and rows where that matters are sorted.

    last_apart: the last is the one that would not be there at count - 1
    """
    if score.device.type != "cpu":
        return score.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    # One more, where there is one, shows whether the last of them is one of equals.
    values, columns = score.topk(min(count + 1, score.shape[-1]), dim=-1)
    equal = values[..., 1:] == values[..., :-1]
    matters = equal[..., count - 1 - last_apart :].any(-1)
    columns = columns[..., :count]
    if matters.any():
        columns[matters] = score[matters].sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return columns


BACKENDS = Dispatch(
    "Choosing the columns to keep",
    (
        Backend(triton_keep_top.NAME, triton_keep_top.why_not, triton_keep_top.keep),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
