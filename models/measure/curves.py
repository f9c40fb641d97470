"""Several curves over a shared axis, with ticks, a linear or a logarithmic height, and lines to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .canvas import FAINT, TEXT, Canvas, line_height, text_width
from .plot import FINE, GAP, GRID, GUTTER, labels, nice_ticks

HEIGHT = 210  # of the area between the axes, pixels
INSET = 10  # pixels that the outermost ticks stand clear of the edges
DECADES = (1, 2, 5)  # where a logarithmic axis may have its ticks
COLOURS = (
    (31, 99, 176), (214, 92, 20), (34, 139, 84), (148, 62, 160), (200, 40, 60), (16, 150, 170), (132, 98, 38),
    (226, 152, 16), (96, 100, 112), (222, 92, 158), (110, 160, 30), (70, 60, 150),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """points: (across, up), in order of the first"""

    points: tuple[tuple[float, float], ...]
    colour: tuple


def colour_of(number: int) -> tuple:
    """The colour of the curve with this number."""
    return COLOURS[number % len(COLOURS)]


class Scale:
    """Values to pixels, along one side. pixels: length; ticks: values with their words; logarithmic: of 10"""

    def __init__(self, pixels: int, low: float, high: float, logarithmic: bool = False):
        self.pixels, self.log = pixels, logarithmic
        self.ticks = log_ticks(low, high) if logarithmic else labels(nice_ticks(low, high))
        self.low, self.high = self._way(self.ticks[0][0]), self._way(self.ticks[-1][0])

    def _way(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> int:
        """Pixels from the low end; values beyond the ends stay at them."""
        if self.log and value <= 0:
            return INSET
        share = (self._way(value) - self.low) / (self.high - self.low)
        return round(INSET + min(1.0, max(0.0, share)) * (self.pixels - 2 * INSET))


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten that cover low to high, two at least; powers alone where those are many."""
    powers = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)
    fine = [factor * 10.0**power for power in powers for factor in DECADES]
    below = max(i for i, tick in enumerate(fine) if tick <= low * 1.001)
    above = next(i for i, tick in enumerate(fine) if tick >= high * 0.999 and i > below)
    ticks = fine[below : above + 1]
    if len(ticks) > 8:
        ticks = [10.0**power for power in powers if power >= math.floor(math.log10(low) + 1e-9)]
    return [(tick, f"{tick:.6f}".rstrip("0").rstrip(".") if tick >= 1e-4 else f"{tick:.0e}") for tick in ticks]


def plot_curves(
    canvas: Canvas,
    left: int,
    top: int,
    width: int,
    curves: Sequence[Curve],
    titles: tuple[str, str],
    span: tuple[float, float],
    logarithmic: bool = False,
    level: float | None = None,
) -> int:
    """Draw the curves with the titles of the two axes, and return the y below.

    titles: of what goes up, above the plot; of what goes across, below it
    span: least and largest value that goes up
    level: a dashed line at this height
    """
    canvas.write(left, top, titles[0])
    top += line_height(TEXT) + 6
    across = Scale(width - GUTTER - 8, 0.0, max(x for curve in curves for x, _ in curve.points))
    up = Scale(HEIGHT, *span, logarithmic)
    canvas.paste(left + GUTTER, top, _draw(curves, across, up, level))
    for value, text in up.ticks:
        y = top + HEIGHT - up.at(value) - line_height(TEXT) // 2
        canvas.write(left + GUTTER - 8 - text_width(text), y, text, colour=FAINT)
    below, end = top + HEIGHT + 4, 0
    for value, text in across.ticks:
        x = left + GUTTER + across.at(value) - text_width(text) // 2
        if x >= end:
            end = canvas.write(x, below, text, colour=FAINT)[2] + GAP
    below += line_height(TEXT)
    middle = left + GUTTER + (across.pixels - text_width(titles[1])) // 2
    return canvas.write(middle, below, titles[1], colour=FAINT)[3]


def _draw(curves: Sequence[Curve], across: Scale, up: Scale, level: float | None) -> Image.Image:
    """Grid, level, curves; no words. A value of 0 on a logarithmic height is a ring at the lower edge."""
    fine = Image.new("RGB", (across.pixels * FINE, up.pixels * FINE), (255, 255, 255))
    draw = ImageDraw.Draw(fine)
    end, bottom = fine.width, fine.height
    for value, _ in up.ticks:
        y = bottom - up.at(value) * FINE
        draw.line([(0, y), (end, y)], fill=GRID, width=FINE)
    for value, _ in across.ticks:
        draw.line([(across.at(value) * FINE, 0), (across.at(value) * FINE, bottom)], fill=GRID, width=FINE)
    if level is not None:
        y = bottom - up.at(level) * FINE
        for x in range(0, end, 12 * FINE):
            draw.line([(x, y), (x + 7 * FINE, y)], fill=FAINT, width=2 * FINE)
    for curve in curves:
        places = [(across.at(x) * FINE, bottom - up.at(y) * FINE) for x, y in curve.points]
        draw.line(places, fill=curve.colour, width=2 * FINE)
        for (x, y), (_, value) in zip(places, curve.points, strict=True):
            fill, size = "white" if up.log and value <= 0 else curve.colour, 4 * FINE
            draw.ellipse([x - size, y - size, x + size, y + size], fill, curve.colour, FINE)
    draw.rectangle([0, 0, end - 1, bottom - 1], outline=FAINT, width=FINE)
    return fine.resize((across.pixels, up.pixels), Image.Resampling.BOX)
