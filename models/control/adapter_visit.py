"""The adapter at work in one evaluation: behind chosen blocks, the video's tokens look at the body's points.

B batch   N tokens of a stream   F latent frames   S tokens of a frame   D host width   M points

Rows of the batch go one by one: all share the body, so nothing is copied for them, and a row cannot tell which others
are beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..block_visits import Streams
from ..forward import Branch
from ..layout import Grid, TokenLayout
from ..nets.interspatial_adapter import Fixed, InterspatialAdapter
from ..nets.interspatial_attention import Attend, attend
from .tokens import BodyTokens

ELSEWHERE = "left out where another patch has rearranged the tokens, or in a model of another width"


class Listener(Protocol):
    """Who wants to know what the tokens look at."""

    def begin(self, tokens: BodyTokens, grid: Grid, branches: Sequence[Branch]) -> None:
        """An evaluation begins. tokens: of its latent frames    branches: the rows of its batch"""
        ...

    def ear(self, layer: int, row: int) -> Attend | None:
        """The attention to use in a layer for a row of the batch, None for the usual one."""
        ...


@dataclass
class Visitor:
    """What `visiting_blocks` takes. adding: layers whose residual counts; the points go on through all of the adapter's
    layers up to the last of them, as they were trained to

    rows: of the batch that get something    timestep: [1], 0..1000    numbers: [F] of the latent frames
    say: called when a stream does not hold the video as the layout has it
    """

    network: InterspatialAdapter
    fixed: Fixed
    numbers: Tensor
    timestep: Tensor
    layout: TokenLayout
    adding: tuple[int, ...]
    strength: float
    rows: tuple[int, ...]
    say: Callable[[str], None]
    listener: Listener | None = None
    _last: int = -1
    _points: dict[int, Tensor] = field(default_factory=dict, repr=False)   # row -> [1, F, M, V]

    def __call__(self, index: int, streams: Streams, run: Callable[..., Streams]) -> Streams:
        out = run(*streams)
        if index <= self._last:   # the model runs anew in the same evaluation: a cache that found it had to
            self._points.clear()
        self._last = index
        if index not in self.network.config.layers or index > max(self.adding):
            return out
        first, *rest = out
        video, *sound = first if isinstance(first, tuple) else (first,)
        video = self._added(index, video)
        return ((video, *sound) if sound else video, *rest)

    def _added(self, layer: int, stream: Tensor) -> Tensor:
        """stream: [B, N, D] or [B, T, H, W, D]"""
        tokens = stream.flatten(1, -2)
        part = video_part(tokens.shape[1], self.layout)
        if part is None or tokens.shape[-1] != self.network.config.host_width:
            self.say(ELSEWHERE)
            return stream
        # a copy, for a block may hand on what it was given, and a cache what it keeps
        out = tokens.clone() if layer in self.adding else tokens
        for row in self.rows:
            seen = self._looks(layer, row, tokens[row : row + 1, part])
            if layer in self.adding:
                out[row : row + 1, part].add_(seen.to(out.dtype), alpha=self.strength)
        return out.reshape(stream.shape)

    def _looks(self, layer: int, row: int, x: Tensor) -> Tensor:
        """x: [1, F S, D] -> what it gets, the same"""
        ear = self.listener and self.listener.ear(layer, row)
        y = self._points.get(row, self.fixed.y)
        seen, self._points[row] = self.network.visit(layer, x, y, self.timestep, self.fixed, self.numbers,
                                                     ear or attend)  # fmt: skip
        return seen


def video_part(tokens: int, layout: TokenLayout) -> slice | None:
    """Where the video lies in a stream of so many tokens: the whole sequence, or what is left of it when the segments
    before or behind the video flow by themselves, as text does in double blocks. None when no cut gives the number."""
    segments, video = layout.segments, layout.video
    at = segments.index(video)
    suffixes = [segments[i:] for i in range(at + 1)]
    prefixes = [segments[:i] for i in range(at + 1, len(segments) + 1)]
    for cut in (segments, *suffixes, *prefixes):
        if sum(map(len, cut)) == tokens:
            start = video.start - cut[0].start
            return slice(start, start + len(video))
    return None


def rows_kept(branches, uncond: str) -> tuple[int, ...]:
    """Rows of the batch that are told of the body. uncond: "drop" leaves out those of the negative prompt"""
    kept = (branch.rows for branch in branches if uncond == "same" or branch.cond == 0)
    return tuple(row for rows in kept for row in range(rows.start, rows.stop))


def chosen_layers(layers: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The adapter's layers whose residual is added. wanted: block numbers, None for all"""
    return tuple(layer for layer in layers if wanted is None or layer in wanted)


def width_of(model) -> int | None:
    """Channels of the video's tokens in a host, by the names that ComfyUI's models give it."""
    names: Mapping[str, int] = {name: value for name in ("dim", "hidden_size", "hidden_size_x", "inner_dim",
                                                         "model_channels", "model_dim")
                                if isinstance(value := getattr(model, name, None), int)}  # fmt: skip
    return next(iter(names.values()), None)
