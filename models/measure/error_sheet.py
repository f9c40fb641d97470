"""The picture of a meter's findings: error and recall over density, a table, and where in the run the error is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .attention_error import MODEL, Findings
from .candidates import asked, middle_density
from .canvas import FAINT, HEADING, INK, TEXT, Canvas, cut, font, line_height, text_width, to_pil, to_tensor, wrap
from .curves import Curve, colour_of, plot_curves
from .error_table import Row
from .picture import MARGIN, heat, write_lines

WIDTH = 900  # pixels of a sheet, more where many densities need it
NAMES, COLUMN = 200, 104  # of the table: names, and one density
SWATCH = 12
LOW, HIGH = 0.003, 1.0  # errors with the first and the last colour of the maps, in logarithms between
CELL, ROOM = (54, 22), (232, 240)  # of a map: largest cell, and what all cells may take; width and height
LAYER_LABEL = 30  # pixels left of a map


def draw_errors(found: Findings, rows: Sequence[Row], lines: Sequence[str]) -> Tensor:
    """The sheet.

    lines: of text under the heading
    returns: [height, width, 3]
    """
    return to_tensor(lay_out(found, rows, lines).render(MARGIN))


def lay_out(found: Findings, rows: Sequence[Row], lines: Sequence[str]) -> Canvas:
    """Everything in its place, from top to bottom."""
    methods = list(dict.fromkeys(row.name for row in rows if row.name != MODEL))
    densities = list(dict.fromkeys(row.asked for row in rows if row.name != MODEL))
    canvas = Canvas(max(WIDTH, 2 * MARGIN + NAMES + COLUMN * len(densities)))
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, ["Attention error against dense"], HEADING) + 4
    y = write_lines(canvas, y, [line for text in lines for line in wrap(text, inside)]) + 14
    if methods:
        y = draw_plots(canvas, y, inside, rows, methods) + 16
        y = draw_table(canvas, y, rows, methods, densities) + 14
    draw_maps(canvas, y, found, methods, densities)
    return canvas


def draw_plots(canvas: Canvas, y: int, inside: int, rows: Sequence[Row], methods: Sequence[str]) -> int:
    """Error and recall over the density that was reached, side by side; returns the y below."""
    width = (inside - 2 * MARGIN) // 2
    errors = [row.error for row in rows if row.name != MODEL and row.error > 1e-6] or [1e-3, 1.0]
    own = next((row.error for row in rows if row.name == MODEL), 0.0)
    level = own if own >= min(errors) / 10 else None  # rounding alone would squeeze the curves
    lowest = min([*errors, level] if level else errors)
    lost = max((1 - row.recall for row in rows if row.name != MODEL), default=1.0)
    across = "density: share of video-to-video blocks"
    title = "relative L2 error, mean over heads" + (f" (dashed: {MODEL})" if level else "")
    below = plot_curves(canvas, MARGIN, y, width, _curves(rows, methods, "error"), (title, across),
                        (lowest, max([*errors, lowest * 2])), True, level)  # fmt: skip
    plot_curves(canvas, MARGIN + width + 2 * MARGIN, y, width, _curves(rows, methods, "recall"),
                ("recall: share of softmax mass in the kept blocks", across), (1 - max(lost, 0.02), 1.0))  # fmt: skip
    return below


def _curves(rows: Sequence[Row], methods: Sequence[str], value: str) -> list[Curve]:
    def points(name: str):
        return tuple(sorted((row.density, getattr(row, value)) for row in rows if row.name == name))

    return [Curve(points(name), colour_of(i)) for i, name in enumerate(methods)]


def draw_table(
    canvas: Canvas, y: int, rows: Sequence[Row], methods: Sequence[str], densities: Sequence[float | None]
) -> int:
    """A line for each method with its colour, a column for each density asked; returns the y below."""
    by = {(row.name, row.asked): row for row in rows}
    canvas.write(MARGIN, y, "density asked", colour=FAINT)
    for i, density in enumerate(densities):
        canvas.write(MARGIN + NAMES + i * COLUMN, y, asked(density))
    y += line_height(TEXT) + 2
    for number, name in enumerate(methods):
        canvas.paste(MARGIN, y + 4, Image.new("RGB", (SWATCH, SWATCH), colour_of(number)))
        canvas.write(MARGIN + SWATCH + 8, y, cut(name, NAMES - SWATCH - 16))
        for i, density in enumerate(densities):
            if row := by.get((name, density)):
                x = MARGIN + NAMES + i * COLUMN
                below = canvas.write(x, y, f"{row.error:.3f}")[3]
                canvas.write(x, below, f"{100 * row.recall:.0f} % at {row.density:.2f}", 12, FAINT)
        y += line_height(TEXT) + line_height(12) + 4
    if row := by.get((MODEL, None)):
        canvas.write(MARGIN + SWATCH + 8, y, MODEL)
        y = canvas.write(MARGIN + NAMES, y, f"{row.error:.3f}" if row.error >= 5e-4 else f"{row.error:.0e}")[3]
    note = "relative L2 error; below it recall, at the density that was reached"
    return canvas.write(MARGIN, y + 2, note, 12, FAINT)[3]


def draw_maps(
    canvas: Canvas, y: int, found: Findings, methods: Sequence[str], densities: Sequence[float | None]
) -> int:
    """For the model and each method at the middle density: the error of each layer (down) and step (across)."""
    shown = middle_density(densities)
    steps, layers = (sorted({getattr(record, side) for record in found.records}) for side in ("step", "layer"))
    errors: dict[str, dict] = {}
    for record in found.records:
        if record.name == MODEL or record.asked == shown:
            errors.setdefault(record.name, {}).setdefault((record.layer, record.step), []).append(record.error)
    grids = {name: [[_mean(errors[name].get((layer, step))) for step in steps] for layer in layers]
             for name in (*methods, MODEL) if name in errors}  # fmt: skip
    grids = {name: grid for name, grid in grids.items() if name != MODEL or _largest(grid) >= LOW}
    title = f"error by layer (down) and step (across), density {asked(shown)}"
    y = write_lines(canvas, y, [title] if grids else []) + 6
    sides = zip(CELL, ROOM, (len(steps), len(layers)), strict=True)
    cell = tuple(max(6, min(most, room // count)) for most, room, count in sides)
    pitch = max(LAYER_LABEL + cell[0] * len(steps), 180) + 2 * MARGIN
    columns = max(1, canvas.width // pitch)
    for number, (name, grid) in enumerate(grids.items()):
        if number and number % columns == 0:
            y += (cell[1] * len(layers)) + 2 * line_height(TEXT) + 14
        draw_map(canvas, MARGIN + number % columns * pitch, y, name, grid, (layers, steps), cell, pitch - 2 * MARGIN)
    y += cell[1] * len(layers) + 2 * line_height(TEXT) + 8
    return draw_colours(canvas, y) if grids else y


def _mean(values: Sequence[float] | None) -> float:
    return sum(values) / len(values) if values else math.nan


def _largest(grid: Sequence[Sequence[float]]) -> float:
    return max((value for row in grid for value in row if not math.isnan(value)), default=0.0)


def draw_map(canvas: Canvas, x: int, y: int, name: str, grid, sides, cell: tuple[int, int], width: int) -> None:
    """One map with its name above and the numbers of its layers and steps."""
    layers, steps = sides
    y = canvas.write(x, y, cut(name, width))[3]
    left = x + LAYER_LABEL
    canvas.paste(left, y, cells(grid, cell))
    every = math.ceil(line_height(12) / cell[1])
    for i, layer in enumerate(layers):
        if i % every == 0:
            place = y + i * cell[1] + max(0, cell[1] - line_height(12)) // 2
            canvas.write(left - 8 - text_width(str(layer), 12), place, str(layer), 12, FAINT)
    every = math.ceil((text_width(str(steps[-1]), 12) + 6) / cell[0])
    for i, step in enumerate(steps):
        if i % every == 0:
            middle = left + i * cell[0] + (cell[0] - text_width(str(step), 12)) // 2
            canvas.write(middle, y + len(layers) * cell[1] + 2, str(step), 12, FAINT)


def cells(grid: Sequence[Sequence[float]], cell: tuple[int, int]) -> Image.Image:
    """Coloured cells, with their numbers where these fit; what was not measured is paper."""
    width, height = cell
    picture = Image.new("RGB", (width * len(grid[0]), height * len(grid)), (240, 240, 236))
    draw = ImageDraw.Draw(picture)
    colours = (heat(torch.tensor([[heat_of(value) for value in row] for row in grid])) * 255).round().int().tolist()
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            if math.isnan(value):
                continue
            colour = tuple(colours[i][j])
            draw.rectangle([j * width, i * height, (j + 1) * width - 2, (i + 1) * height - 2], fill=colour)
            if width >= 40 and height >= 16:
                ink, text = INK if sum(colour) > 380 else (245, 245, 245), f"{value:.3f}"
                draw.text((j * width + (width - text_width(text, 12)) // 2, i * height + 3), text, ink, font(12))
    return picture


def heat_of(error: float) -> float:
    """Place of an error on the colours, 0 to 1; 0 where there is none."""
    return min(1.0, max(0.0, math.log(max(error, 1e-12) / LOW) / math.log(HIGH / LOW))) if error > 0 else 0.0


def draw_colours(canvas: Canvas, y: int) -> int:
    """The bar that says which colour is which error; returns the y below its numbers."""
    width, height = 420, 12
    canvas.paste(MARGIN, y, to_pil(heat(torch.linspace(0, 1, width)).expand(height, -1, -1)))
    for value in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        x = MARGIN + round(heat_of(value) * (width - 1)) - text_width(f"{value:g}", 12) // 2
        canvas.write(max(MARGIN, x), y + height + 2, f"{value:g}", 12, FAINT)
    return y + height + 2 + line_height(12)
