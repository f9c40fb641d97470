"""The picture of a sparse pattern: layers by heads, coloured by what each head computes; and the same in words."""
# L layers   H heads   P patterns

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..attention.pattern_table import PatternTable
from ..attention.patterns import Pattern
from .canvas import FAINT, HEADING, TEXT, Canvas, line_height, text_width, to_pil, to_tensor, wrap
from .picture import MARGIN, write_lines

WIDTH = 900  # pixels
PANELS = 3  # places in the noise range that are shown
LABELS = 30  # pixels left of a panel, for layer numbers
CELL = (3, 22)  # least and most pixels of a side
SWATCH = 14
PALEST = 0.35  # strength of the colour of the smallest share
COLOURS = {
    "full": (52, 56, 64), "skip": (226, 226, 222), "diagonal": (31, 99, 176), "places": (196, 88, 22),
    "stripes": (34, 128, 84), "frames": (116, 68, 160),
}  # fmt: skip


def draw_pattern(table: PatternTable, lines: Sequence[str]) -> Tensor:
    """The sheet. lines: of text under the heading; returns: [height, width, 3]"""
    return to_tensor(lay_out(table, lines).render(MARGIN))


def lay_out(table: PatternTable, lines: Sequence[str]) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas = Canvas(WIDTH)
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, [heading(table)], HEADING) + 4
    y = write_lines(canvas, y, [line for text in lines for line in wrap(text, inside)]) + 12
    y = draw_legend(canvas, y, table) + 12
    bins = shown_bins(table)
    width = inside // len(bins)
    for i, number in enumerate(bins):
        draw_panel(canvas, MARGIN + i * width, y, width - MARGIN, table, number)
    return canvas


def draw_legend(canvas: Canvas, y: int, table: PatternTable) -> int:
    """Colour, name and use of each pattern, as many a row as fit; returns the y below."""
    entries = [f"{pattern.name}: {100 * share:.0f} %" for pattern, share in use(table)]
    column = SWATCH + 24 + max(text_width(entry) for entry in entries)
    columns = max(1, (canvas.width - 2 * MARGIN) // column)
    for i, (entry, pattern) in enumerate(zip(entries, table.patterns, strict=True)):
        x, top = MARGIN + i % columns * column, y + i // columns * (line_height(TEXT) + 4)
        canvas.paste(x, top + 3, Image.new("RGB", (SWATCH, SWATCH), colour_of(pattern, table.patterns)))
        canvas.write(x + SWATCH + 8, top, entry)
    return y + -(-len(entries) // columns) * (line_height(TEXT) + 4)


def draw_panel(canvas: Canvas, x: int, y: int, width: int, table: PatternTable, number: int) -> None:
    """Layers from top to bottom, heads from left to right, in one bin of the noise range."""
    canvas.write(x, y, panel_title(table, number))
    choice = table.choice[number, :, :1] if table.by_layer else table.choice[number]
    cell = max(CELL[0], min(CELL[1], (width - LABELS) // choice.shape[1]))
    over = max(0, line_height(TEXT) - cell) // 2 + 1  # of a layer's number over its cell, above and below
    y += line_height(TEXT) + 4 + over
    colours = torch.tensor([colour_of(pattern, table.patterns) for pattern in table.patterns]) / 255
    cells = colours[choice.long()].repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    if cell > CELL[0]:  # a line between cells that are wide enough for one
        cells[cell - 1 :: cell] = cells[:, cell - 1 :: cell] = 1.0
    canvas.paste(x + LABELS, y, to_pil(cells))
    step = -(-line_height(TEXT) // cell)
    for i in range(0, len(table.layers), step):
        label = str(table.layers[i])
        top = y + i * cell + (cell - line_height(TEXT)) // 2
        canvas.write(x + LABELS - 6 - text_width(label), top, label, colour=FAINT)
    below = y + len(table.layers) * cell + over + 4
    canvas.write(x + LABELS, below, "layers down" if table.by_layer else "layers down, heads across", colour=FAINT)


def heading(table: PatternTable) -> str:
    """What kind of table it is."""
    return "Reference frames by layer" if table.by_layer else "Attention patterns by layer and head"


def panel_title(table: PatternTable, number: int) -> str:
    """Which part of the noise range a panel shows."""
    if table.by_layer:
        return "whole run"
    return f"{100 * number / table.bins:.0f} to {100 * (number + 1) / table.bins:.0f} % of the noise range"


def shown_bins(table: PatternTable) -> list[int]:
    """First, middle and last of the bins that were calibrated; one where all are alike."""
    seen = table.calls.sum(1).nonzero().flatten().tolist()
    if table.by_layer:
        return seen[:1]
    return sorted({seen[round(i * (len(seen) - 1) / (PANELS - 1))] for i in range(PANELS)})


def use(table: PatternTable) -> list[tuple[Pattern, float]]:
    """Each pattern with the share of heads, layers and calibrated bins that run it."""
    chosen = table.choice[table.calls.sum(1) > 0].flatten().long()
    counts = torch.bincount(chosen, minlength=len(table.patterns)) / len(chosen)
    return list(zip(table.patterns, counts.tolist(), strict=True))


def colour_of(pattern: Pattern, patterns: Sequence[Pattern]) -> tuple[int, int, int]:
    """The colour of its kind, paler where it keeps less than others of the kind."""
    amounts = sorted(other.amount for other in patterns if other.kind == pattern.kind)
    rank = amounts.index(pattern.amount) / max(1, len(amounts) - 1) if len(amounts) > 1 else 1.0
    strength = PALEST + (1 - PALEST) * rank
    return tuple(round(255 + strength * (part - 255)) for part in COLOURS[pattern.kind])


def describe(table: PatternTable) -> list[str]:
    """A table in words, one line for each thing."""
    kept, error = table.expected()
    side = f" of side {table.blocks.side}" if table.blocks.side else ""
    tail = {"row": "tail for each query", "block": "tail for each block", None: "no tail"}[table.tail]
    seen = table.calls.sum(1) > 0
    used = ", ".join(f"{pattern.name} {100 * share:.0f} %" for pattern, share in use(table) if share)
    return [
        f"{table.network}, latent grid {' x '.join(map(str, table.grid))}, {table.blocks.order} blocks{side}, {tail}",
        f"density {table.density:.2f} asked, {kept:.2f} reached; error of a layer {error:.3f} (relative L2, root mean "
        "square over layers and steps)",
        f"{'layers' if table.by_layer else 'heads'}: {used}",
        f"{int(table.calls.sum(0).max())} attention calls a layer, in {int(seen.sum())} of {table.bins} parts of the "
        "noise range" + ("" if seen.all() else "; the others go by the nearest"),
    ]
