"""The picture of a plan of mixed precision: bits of each layer, and what its rounding does to content, motion and text.
And the same in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..quant.format import FORMATS
from ..quant.layers import block_of_layer, natural, role_of_layer
from ..quant.plan import Plan
from ..quant.recipe import Choice
from ..quant.sensitivity import METRICS, probe_of
from .cache_plan_table import as_text, bytes_of
from .canvas import FAINT, HEADING, TEXT, Canvas, cut, line_height, text_width, to_pil, to_tensor, wrap
from .picture import MARGIN, heat, write_lines

WIDTH = 900   # pixels
LABELS = 210   # pixels left of a panel, for roles
CELL = (4, 26)   # least and most width of a cell
ROW = 18   # height of a cell
SWATCH = 14
BLANK = (250, 250, 248)
FEW, MANY = (222, 235, 247), (8, 62, 125)   # colours of 2 and of 8 bits
DECADES = 3   # of the sensitivity scale, below its largest value

Place = tuple[str, int]   # row and column


def draw_precision(plan: Plan, lines: Sequence[str]) -> Tensor:
    """The sheet. lines: of text under the heading; returns: [height, width, 3]"""
    return to_tensor(lay_out(plan, lines).render(MARGIN))


def lay_out(plan: Plan, lines: Sequence[str]) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas = Canvas(WIDTH)
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, ["Bits of each layer, and what they rest on"], HEADING) + 4
    y = write_lines(canvas, y, [line for text in lines for line in wrap(text, inside)]) + 12
    grid = Grid(plan.measured.shapes, inside - LABELS)
    y = draw_legend(canvas, y, plan) + 8
    colours = {layer: colour_of(choice, plan.measured.choices) for layer, choice in plan.chosen.items()}
    y = grid.draw(canvas, y, "layers (down) by blocks (across)", colours.__getitem__) + 10
    shown, errors = probe_errors(plan)
    for m, metric in enumerate(METRICS):
        if not plan.measured.seen[m]:
            y = write_lines(canvas, y, [f"{metric}: not measured"]) + 10
            continue
        top = max(max(error[m] for error in errors.values()), 1e-30)
        title = f"{metric}: error of each layer alone at {shown}, share of the model's own {metric}"
        y = grid.draw(canvas, y, title, lambda layer, m=m, top=top: shade(errors[layer][m], top))
        y = draw_scale(canvas, y, top) + 10
    return canvas


class Grid:
    """Layers as cells: rows are roles, columns are blocks."""

    def __init__(self, layers: Iterable[str], width: int) -> None:
        self.at: dict[str, Place] = {layer: place_of(layer) for layer in layers}
        self.rows = sorted({row for row, _ in self.at.values()}, key=natural)
        self.columns = sorted({column for _, column in self.at.values()})
        self.cell = max(CELL[0], min(CELL[1], width // len(self.columns)))

    def draw(self, canvas: Canvas, y: int, title: str, colour: Callable[[str], tuple[int, int, int]]) -> int:
        """A panel with its title and labels; returns the y below."""
        y = canvas.write(MARGIN, y, cut(title, canvas.width - 2 * MARGIN))[3] + 4
        line = max(ROW, line_height(TEXT))
        pixels = torch.tensor(BLANK).expand(len(self.rows) * line, len(self.columns) * self.cell, 3).clone()
        for layer, (row, column) in self.at.items():
            top, left = self.rows.index(row) * line, self.columns.index(column) * self.cell
            pixels[top : top + line - 1, left : left + self.cell - 1] = torch.tensor(colour(layer))
        canvas.paste(MARGIN + LABELS, y, to_pil(pixels / 255))
        for i, row in enumerate(self.rows):
            canvas.write(MARGIN, y + i * line, cut(row, LABELS - 8), colour=FAINT)
        below = y + len(self.rows) * line + 2
        every = max(1, -(-(text_width(str(self.columns[-1])) + 8) // self.cell))
        for i in range(0, len(self.columns), every):
            canvas.write(MARGIN + LABELS + i * self.cell, below, str(self.columns[i]), colour=FAINT)
        return below + line_height(TEXT)


def place_of(layer: str) -> Place:
    """Role, with the stack where it is not the usual one, and number of the block."""
    stack, number = block_of_layer(layer) or ("", 0)
    role = role_of_layer(layer)
    return (role if stack in ("", "blocks") else f"{stack}: {role}"), number


def draw_legend(canvas: Canvas, y: int, plan: Plan) -> int:
    """Colour, name and use of each choice that is used; returns the y below."""
    entries = [(choice, f"{label_of(choice)}: {count}") for choice, count in used(plan)]
    column = SWATCH + 24 + max(text_width(text) for _, text in entries)
    columns = max(1, (canvas.width - 2 * MARGIN) // column)
    for i, (choice, text) in enumerate(entries):
        x, top = MARGIN + i % columns * column, y + i // columns * (line_height(TEXT) + 4)
        swatch = Image.new("RGB", (SWATCH, SWATCH), colour_of(choice, plan.measured.choices))
        canvas.paste(x, top + 3, swatch)
        canvas.write(x + SWATCH + 8, top, text)
    return y + -(-len(entries) // columns) * (line_height(TEXT) + 4)


def draw_scale(canvas: Canvas, y: int, top: float) -> int:
    """The bar that says which colour is which error; returns the y below."""
    width, height = 320, 12
    ramp = torch.tensor([shade(top * 10 ** (DECADES * (i / (width - 1) - 1)), top) for i in range(width)])
    canvas.paste(MARGIN + LABELS, y + 4, to_pil((ramp / 255).expand(height, -1, -1)))
    low, high = f"{top / 10**DECADES:.0e} or less", f"{top:.1e}"
    canvas.write(MARGIN + LABELS - 8 - text_width(low), y, low, colour=FAINT)
    return canvas.write(MARGIN + LABELS + width + 8, y, high, colour=FAINT)[3]


def shade(error: float, top: float) -> tuple[int, int, int]:
    """Colour of an error on a logarithmic scale, from `top` three decades down."""
    place = 1 + math.log10(max(error, 1e-300) / top) / DECADES
    return tuple((255 * heat(torch.tensor(max(0.0, place)))).round().int().tolist())


def colour_of(choice: Choice, choices: Sequence[Choice]) -> tuple[int, int, int]:
    """Bluer with more bits; formats of one width differ in warmth."""
    share = (choice.bits - 2) / 6
    twins = [other for other in choices if other.bits == choice.bits]
    warm = 46 * twins.index(choice)
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(FEW, MANY, strict=True))
    return min(255, red + warm), max(0, green - warm // 3), max(0, blue - warm)


def label_of(choice: Choice) -> str:
    """A choice for the user: "ViDiT-Q 4-bit"."""
    return f"{FORMATS[choice.format].label} {choice.bits}-bit"


def used(plan: Plan) -> list[tuple[Choice, int]]:
    """Choices that layers have, the widest first, with the number of layers."""
    return [(choice, plan.histogram[choice]) for choice in plan.measured.choices if plan.histogram[choice]]


def probe_errors(plan: Plan) -> tuple[str, dict[str, tuple[float, ...]]]:
    """Name of one width, and the errors of each layer nearest to it: what panels show must not depend on the plan."""
    errors = {}
    for layer, options in plan.measured.options.items():
        choice = probe_of(options)
        errors[layer] = options[choice].errors
    return f"{choice.bits} bits", errors


def describe(plan: Plan) -> list[str]:
    """A plan in words, one line for each thing."""
    measured, about = plan.measured, plan.measured.about
    full = 2 * measured.weights
    lines = [
        f"{len(plan.chosen)} layers of {about.get('model', 'a model')}: {plan.bits_per_weight:.2f} bits per weight, "
        f"{bytes_of(plan.nbytes)} of {bytes_of(full)} at 16 bits, budget {bytes_of(plan.about['budget'])}",
        ", ".join(f"{label_of(choice)}: {count} layers" for choice, count in used(plan)),
        against_uniform(plan),
    ]
    if missing := [name for name, seen in zip(METRICS, measured.seen, strict=True) if not seen]:
        lines.append(f"not measured: {', '.join(missing)} (text needs a negative prompt and guidance, motion two "
                     "latent frames)")  # fmt: skip
    return lines


def against_uniform(plan: Plan) -> str:
    """What the plan is predicted to gain over one choice for all."""
    uniform = plan.uniform()
    if uniform is None:
        return "no single choice for all layers fits the budget, so there is nothing to compare with"
    choice, nbytes, errors = uniform
    parts = [f"{name} {mine / theirs:.2f}" for name, mine, theirs, seen
             in zip(METRICS, plan.errors, errors, plan.measured.seen, strict=True) if seen and theirs]  # fmt: skip
    return f"predicted squared error, times that of {label_of(choice)} for all layers ({bytes_of(nbytes)}): " + (
        ", ".join(parts) or "unknown"
    )


def table_of(plan: Plan) -> list[str]:
    """A line for each layer: choice, bytes, and its predicted errors."""
    rows, seen = [("layer", "choice", "kB", *METRICS)], plan.measured.seen
    for layer, choice, option in plan.rows:
        errors = (f"{error:.1e}" if there else "-" for error, there in zip(option.errors, seen, strict=True))
        rows.append((layer, label_of(choice), f"{option.nbytes / 1e3:.0f}", *errors))
    return as_text(rows)
