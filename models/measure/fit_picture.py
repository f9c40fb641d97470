"""The picture of what a run takes on a card: a stacked bar for each way to keep the weights, and the card's edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw
from torch import Tensor

from ..quant.fit import gb
from .cache_plan_table import as_text
from .canvas import FAINT, HEADING, INK, TEXT, Canvas, cut, line_height, text_width, to_tensor, wrap
from .picture import MARGIN, write_lines

if TYPE_CHECKING:
    from ..quant.fit import Fit, Need

WIDTH = 900  # pixels
NAMES = 150  # pixels left of the bars
BAR, STEP = 20, 28  # pixels of a bar, and from one to the next
SWATCH = 14
EDGE = (176, 28, 40)
PARTS = (
    ("quantised weights", (31, 99, 176)), ("other weights", (118, 164, 214)), ("activations", (214, 120, 32)),
    ("kept by caches", (116, 68, 160)), ("ComfyUI's reserve", (190, 190, 186)), ("VAE", (34, 128, 84)),
)  # fmt: skip
HEAD = ("", "weights", "activations", "as a whole", "at least", "streams")


def parts_of(need: Need) -> tuple[int, ...]:
    """Bytes of a bar, in the order of PARTS."""
    return (need.weights.coded, need.weights.others, need.activations, need.history, need.reserve)


def bars_of(fit: Fit) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, parts and whole of each bar, what was asked for first."""
    bars = [(need.name, parts_of(need), need.whole) for need in (fit.chosen, *fit.others)]
    if fit.decoding:
        turn = fit.decoding
        for name, size in (("VAE decode", turn.whole), ("VAE decode, tiled", turn.tiled)):
            bars.append((name, (0, 0, 0, 0, turn.reserve, turn.weights + size), turn.weights + size + turn.reserve))
    return bars


def draw_fit(fit: Fit, heading: str) -> Tensor:
    """The sheet. returns: [height, width, 3]"""
    return to_tensor(lay_out(fit, heading).render(MARGIN))


def lay_out(fit: Fit, heading: str) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas = Canvas(WIDTH)
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, [cut(heading, inside, HEADING)], HEADING) + 4
    y = write_lines(canvas, y, [line for text in fit.lines() for line in wrap(text, inside)]) + 12
    bars = bars_of(fit)
    numbers = max(text_width(gb(whole)) for *_, whole in bars) + 8
    scale = (inside - NAMES - numbers) / max(fit.card, *(whole for *_, whole in bars))
    y = draw_bars(canvas, y, bars, fit.card, scale) + 8
    return draw_legend(canvas, y, [part for part, _ in PARTS if part != "VAE" or fit.decoding])


def draw_bars(canvas: Canvas, y: int, bars: Sequence[tuple], card: int, scale: float) -> int:
    """The bars from `y` on, `scale` pixels a byte, with the card's edge through all; returns the y below."""
    left, edge = MARGIN + NAMES, round(card * scale)
    text = f"card, {gb(card)}"
    at = min(left + edge - text_width(text) // 2, canvas.width - MARGIN - text_width(text))
    y = canvas.write(at, y, text, colour=EDGE)[3] + 2
    for number, (name, parts, whole) in enumerate(bars):
        last = number + 1 == len(bars)
        canvas.write(MARGIN, y, cut(name, NAMES - 8), colour=INK if number == 0 else FAINT)
        length = max(edge + 2, round(whole * scale) + 1)
        canvas.paste(left, y, bar_of(parts, length, edge, scale, BAR if last else STEP))
        canvas.write(left + length + 6, y, gb(whole), colour=INK if whole <= card else EDGE)
        y += STEP
    return y


def bar_of(parts: Sequence[int], length: int, edge: int, scale: float, height: int) -> Image.Image:
    """One bar on paper, with the card's edge over its whole height."""
    picture = Image.new("RGB", (length, height), (250, 250, 248))
    draw = ImageDraw.Draw(picture)
    start = 0
    for size, (_, colour) in zip(parts, PARTS, strict=False):
        stop = start + size
        if round(stop * scale) > round(start * scale):
            draw.rectangle([round(start * scale), 0, round(stop * scale) - 1, BAR - 1], colour)
        start = stop
    draw.rectangle([edge, 0, edge + 1, height], EDGE)
    return picture


def draw_legend(canvas: Canvas, y: int, names: Sequence[str]) -> Canvas:
    """What the colours mean."""
    colours, x = dict(PARTS), MARGIN
    for name in names:
        if x + SWATCH + 6 + text_width(name) > canvas.width - MARGIN:
            x, y = MARGIN, y + line_height(TEXT) + 2
        canvas.paste(x, y + 3, Image.new("RGB", (SWATCH, SWATCH), colours[name]))
        x = canvas.write(x + SWATCH + 6, y, name)[2] + 18
    return canvas


def table_of(fit: Fit) -> list[str]:
    """The bars in figures, a line each."""
    rows = [(need.name, gb(need.weights.total), gb(need.activations), gb(need.whole),
             gb(need.least), streams(need, fit.card)) for need in (fit.chosen, *fit.others)]  # fmt: skip
    return as_text([HEAD, *rows])


def streams(need: Need, card: int) -> str:
    """What comes over the bus in each evaluation, "" where nothing does."""
    if need.least > card:
        return "does not fit"
    return gb(need.streamed(card)) if need.streamed(card) else ""

