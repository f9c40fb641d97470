"""One quantity over the frames of a clip, drawn with axes, ticks and units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

from .canvas import FAINT, TEXT, Canvas, line_height, text_width

FINE = 3  # PIL draws hard edges: curves are drawn this many times larger and averaged down
GUTTER = 64  # pixels left of the axis, for its numbers
GRID = (222, 222, 218)
HEIGHT = 130  # of the area between the axes, pixels
GAP = 12  # least space between two tick labels, pixels


def plot_frames(
    canvas: Canvas,
    left: int,
    top: int,
    width: int,
    values: Sequence[float],
    title: str,
    colour: tuple,
    marks: Sequence[int] = (),
    least_span: float = 1.0,
    ceiling: float = math.inf,
) -> int:
    """Draw `values` over their index with the title above, and return the y below it.

    An infinite value has no height: it leaves a gap in the curve and a ring at the upper edge.
    values: two or more, at least one of them finite
    marks: frames with a vertical line
    least_span: the axis covers at least this much, so that noise in a flat curve stays small
    ceiling: largest value that can be, the axis ends there
    """
    canvas.write(left, top, title)
    top += line_height(TEXT) + 6
    area = Area(width - GUTTER - 8, values, least_span, ceiling)
    canvas.paste(left + GUTTER, top, area.draw(values, colour, marks))
    for value, text in labels(area.ticks):
        y = top + area.y(value) - line_height(TEXT) // 2
        canvas.write(left + GUTTER - 8 - text_width(text), y, text, colour=FAINT)
    below = top + HEIGHT + 4
    canvas.write(left + GUTTER - 8 - text_width("frame"), below, "frame", colour=FAINT)
    for frame in area.frame_ticks():
        x = left + GUTTER + area.x(frame) - text_width(str(frame)) // 2
        canvas.write(x, below, str(frame), colour=FAINT)
    return below + line_height(TEXT)


class Area:
    """The rectangle between the axes: maps frames and values to pixels inside it and draws the curve."""

    def __init__(self, width: int, values: Sequence[float], least_span: float, ceiling: float):
        self.width, self.frames = width, len(values)
        finite = [value for value in values if math.isfinite(value)]
        low, high = min(finite), max(finite)
        pad = max(0.0, least_span - (high - low)) / 2
        high = min(high + pad, ceiling)
        self.ticks = nice_ticks(min(low - pad, high - least_span), high)
        self.low, self.high = self.ticks[0], self.ticks[-1]

    def x(self, frame: float) -> int:
        """Pixel column of a frame; first and last stand clear of the edges."""
        return round(10 + frame / max(1, self.frames - 1) * (self.width - 20))

    def y(self, value: float) -> int:
        """Pixel row of a value; the extreme ticks stand clear of the edges."""
        return round(8 + (self.high - value) / (self.high - self.low) * (HEIGHT - 16))

    def frame_ticks(self) -> list[int]:
        """Frames to label: round numbers, as many as fit side by side."""
        room = max(1, (self.width - 20) // (text_width(str(self.frames)) + GAP))
        step = max(1, math.ceil(nice_step((self.frames - 1) / room)))
        return list(range(0, self.frames, step))

    def draw(self, values: Sequence[float], colour: tuple, marks: Sequence[int]) -> Image.Image:
        """Grid, marks, curve; no words."""
        fine = Image.new("RGB", (self.width * FINE, HEIGHT * FINE), (255, 255, 255))
        draw = ImageDraw.Draw(fine)
        end, bottom = self.width * FINE, HEIGHT * FINE
        for value in self.ticks:
            draw.line([(0, self.y(value) * FINE), (end, self.y(value) * FINE)], fill=GRID, width=FINE)
        for frame in marks:
            draw.line([(self.x(frame) * FINE, 0), (self.x(frame) * FINE, bottom)], fill=(176, 176, 172), width=FINE)
        points = [(self.x(i) * FINE, self.y(v) * FINE if math.isfinite(v) else None) for i, v in enumerate(values)]
        for start, stop in pairwise(points):
            if start[1] is not None and stop[1] is not None:
                draw.line([start, stop], fill=colour, width=2 * FINE)
        size = (3 if self.x(1) - self.x(0) > 8 else 1) * FINE  # dots where they do not run together
        for x, y in points:
            ring = y is None
            y = 5 * FINE if ring else y
            draw.ellipse([x - size, y - size, x + size, y + size], "white" if ring else colour, colour, FINE)
        draw.rectangle([0, 0, end - 1, bottom - 1], outline=FAINT, width=FINE)
        return fine.resize((self.width, HEIGHT), Image.Resampling.BOX)


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Up to `count` + 2 round values from at or below `low` to at or above `high`."""
    step = nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, last + 1)]


def labels(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Each tick with its number, all with the decimals that the step needs."""
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-6))
    return [(tick, f"{tick:.{decimals}f}") for tick in ticks]
