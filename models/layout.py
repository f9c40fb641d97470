"""What each token of one attention call is: text, reference, audio, video, pose or padding.

A model family computes one `TokenLayout` per forward, before the forward runs. An attention call is touched only when
its token count equals that layout exactly. Token *orders* (tiles, cubes, curves) live in `attention/orders.py`.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = ("text", "reference", "audio", "video", "pose", "padding")

Grid = tuple[int, int, int]   # latent frames, rows, columns after patchify: T H W


class LayoutError(ValueError):
    """The segments do not describe the sequence they claim to describe."""


@dataclass(frozen=True)
class Segment:
    """One run of tokens of the same kind. `grid` is set when the tokens are a T H W raster."""

    kind: str
    start: int
    stop: int
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LayoutError(f"A segment cannot be of kind {self.kind!r}. Accepted: {', '.join(KINDS)}.")
        if not 0 <= self.start < self.stop:
            raise LayoutError(f"The {self.kind} segment runs from {self.start} to {self.stop}: it needs a token.")
        if self.grid is not None and math.prod(self.grid) != self.stop - self.start:
            raise LayoutError(
                f"The {self.kind} segment has {self.stop - self.start} tokens, but its grid "
                f"{' x '.join(map(str, self.grid))} has {math.prod(self.grid)}."
            )

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TokenLayout:
    """All tokens of one self attention: segments in order, without gap or overlap, exactly one of them video.

    tokens: N, the length of the sequence
    grid: T H W of the video segment
    """

    tokens: int
    segments: tuple[Segment, ...]
    grid: Grid
    _video: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        at = 0
        for segment in self.segments:
            if segment.start != at:
                what = "a gap" if segment.start > at else "an overlap"
                raise LayoutError(
                    f"The {segment.kind} segment starts at token {segment.start}, the one before ends at {at}: {what}."
                )
            at = segment.stop
        if at != self.tokens:
            raise LayoutError(f"The segments cover {at} of {self.tokens} tokens.")
        videos = [i for i, segment in enumerate(self.segments) if segment.kind == "video"]
        if len(videos) != 1:
            raise LayoutError(f"A layout has exactly one video segment, this one has {len(videos)}.")
        if self.segments[videos[0]].grid != self.grid:
            raise LayoutError(f"The layout says grid {self.grid}, its video segment {self.segments[videos[0]].grid}.")
        object.__setattr__(self, "_video", videos[0])

    @property
    def video(self) -> Segment:
        """The video segment."""
        return self.segments[self._video]

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame: H x W."""
        return self.grid[1] * self.grid[2]

    @property
    def key(self) -> tuple:
        """Small hashable name of the layout; equal layouts have equal keys."""
        return (self.tokens, self.grid, *((s.kind, s.start, s.stop) for s in self.segments))


def arrange(parts: Iterable[tuple[str, int | Grid]]) -> TokenLayout:
    """Lay parts end to end: each is (kind, token count) or (kind, grid). Parts without tokens are left out.

    `arrange([("text", 7), ("video", (3, 4, 6))])` is text at 0..7 and video at 7..79.
    """
    segments, at = [], 0
    for kind, size in parts:
        grid = size if isinstance(size, tuple) else None
        count = math.prod(size) if isinstance(size, tuple) else size
        if count:
            segments.append(Segment(kind, at, at + count, grid))
            at += count
    video = next((segment for segment in segments if segment.kind == "video"), None)
    if video is None or video.grid is None:
        raise LayoutError("A layout needs a video part given as its T x H x W grid.")
    return TokenLayout(at, tuple(segments), video.grid)
