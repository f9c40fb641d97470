"""The picture of step caches before a run: sigma over the steps, what runs, what is forecast, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw
from torch import Tensor

from .cache_plan_table import cells, describe
from .canvas import FAINT, HEADING, INK, TEXT, Canvas, cut, line_height, text_width, to_tensor, wrap
from .picture import MARGIN, write_lines
from .plot import FINE, GAP, GRID, GUTTER, labels, nice_step, nice_ticks

if TYPE_CHECKING:
    from ..cache.dry_run import Call
    from ..cache.plan import Plan

WIDTH = 900  # pixels
HEIGHTS = (170, 84)  # of the area with sigma, and of the one with the arcs
INSET = 14  # pixels that points stand clear of the edges
SMALL = 12  # pixels of the weights' text
SHADE = (236, 233, 222)  # steps that always run
RUNS = (31, 99, 176)
PLUS, MINUS = (31, 99, 176), (214, 92, 20)  # arcs by the sign of the weight
DOT = (2, 6)  # least and most pixels of a dot's radius
LABELLED = 3  # weights that are written beneath a forecast; more are seen by their arcs alone
LEGEND = (
    ("run", "runs"), ("forecast", "forecast"), ("depends", "open until the run"), ("shade", "always runs"),
    ("plus", "weight above 0"), ("minus", "below 0"),
)  # fmt: skip


def draw_plans(plans: Sequence[Plan], heading: str, prompts: int) -> Tensor:
    """The sheet.

    prompts: evaluated in each model call, for the history
    returns: [height, width, 3]
    """
    return to_tensor(lay_out(plans, heading, prompts).render(MARGIN))


def lay_out(plans: Sequence[Plan], heading: str, prompts: int) -> Canvas:
    """Everything in its place, from top to bottom."""
    canvas = Canvas(WIDTH)
    inside = canvas.width - 2 * MARGIN
    y = write_lines(canvas, MARGIN, [cut(heading, inside, HEADING)], HEADING) + 6
    for plan in plans:
        y = write_lines(canvas, y, [line for text in describe(plan, prompts) for line in wrap(text, inside)]) + 10
        y = draw_plan(canvas, y, inside, plan) + 18
    y = draw_legend(canvas, y) + 14
    draw_table(canvas, y, inside, cells(plans, prompts))
    return canvas


class Across:
    """Calls to pixel columns: a step has the same width however many calls it makes."""

    def __init__(self, plan: Plan, width: int):
        self.width, self.steps = width, plan.ahead.schedule.steps
        per_step = [0] * self.steps
        at = []
        for call in plan.calls:
            at.append((call.step, per_step[call.step]))
            per_step[call.step] += 1
        self.calls = [self.x(step - 0.5 + (place + 0.5) / per_step[step]) for step, place in at]
        self.closest = (self.x(1) - self.x(0)) / max(per_step)

    def x(self, step: float) -> float:
        """Pixel column of the middle of a step; the end of the schedule has a step's width too."""
        return INSET + (step + 0.5) / (self.steps + 1) * (self.width - 2 * INSET)

    def labelled(self) -> list[int]:
        """Steps to label: round numbers, as many as fit side by side."""
        room = max(1, (self.width - 2 * INSET) // (text_width(str(self.steps)) + GAP) - 1)
        return list(range(0, self.steps, max(1, int(nice_step(self.steps / room) + 0.999))))

    @property
    def dot(self) -> float:
        return min(DOT[1], max(DOT[0], 0.3 * self.closest))


def draw_plan(canvas: Canvas, y: int, width: int, plan: Plan) -> int:
    """Sigma over the steps, below it what the forecasts are made of; returns the y below."""
    across = Across(plan, width - GUTTER - 8)
    left = MARGIN + GUTTER
    top = max(call.sigma for call in plan.calls)
    ticks = nice_ticks(0.0, top)
    y = canvas.write(MARGIN, y, "sigma of each model call", colour=FAINT)[3] + 4
    canvas.paste(left, y, sigma_area(plan, across, ticks))
    for value, text in labels(ticks):
        at = y + row(value, ticks) - line_height(TEXT) // 2
        canvas.write(left - 8 - text_width(text), at, text, colour=FAINT)
    y += HEIGHTS[0] + 4
    canvas.write(left - 8 - text_width("step"), y, "step", colour=FAINT)
    for step in across.labelled():
        canvas.write(round(left + across.x(step)) - text_width(str(step)) // 2, y, str(step), colour=FAINT)
    y += line_height(TEXT) + 4
    if any(call.made_of for call in plan.calls):
        y = canvas.write(MARGIN, y, "what each forecast is made of", colour=FAINT)[3] + 4
        canvas.paste(left, y, arc_area(plan, across))
        y = write_weights(canvas, left, y + HEIGHTS[1] + 2, plan.calls, across)
    return y


def row(sigma: float, ticks: Sequence[float]) -> int:
    """Pixel row of a sigma."""
    return round(INSET + (ticks[-1] - sigma) / (ticks[-1] - ticks[0]) * (HEIGHTS[0] - 2 * INSET))


def sigma_area(plan: Plan, across: Across, ticks: Sequence[float]) -> Image.Image:
    """Shaded steps, grid, the schedule, a dot for each call; no words."""
    fine, draw = blank(across.width, HEIGHTS[0])
    settled, steps = plan.settled, plan.ahead.schedule.steps
    if settled.first:
        draw.rectangle([0, 0, across.x(min(settled.first, steps) - 0.5) * FINE, fine.height], SHADE)
    if settled.last:
        draw.rectangle([across.x(max(steps - settled.last, 0) - 0.5) * FINE, 0, fine.width, fine.height], SHADE)
    for value in ticks:
        draw.line([(0, row(value, ticks) * FINE), (fine.width, row(value, ticks) * FINE)], GRID, FINE)
    path = [(across.x(step), row(sigma, ticks)) for step, sigma in enumerate(plan.ahead.schedule.sigmas)]
    draw.line([(x * FINE, y * FINE) for x, y in path], (190, 190, 186), FINE)
    for call, x in zip(plan.calls, across.calls, strict=True):
        draw_dot(draw, x * FINE, row(call.sigma, ticks) * FINE, across.dot * FINE, call.does)
    return framed(fine, draw)


def arc_area(plan: Plan, across: Across) -> Image.Image:
    """An arc from each kept output to each forecast that it is part of, as thick as its weight; no words."""
    fine, draw = blank(across.width, HEIGHTS[1])
    base = (HEIGHTS[1] - INSET) * FINE
    span = max(across.calls[i] - across.calls[j] for i, call in enumerate(plan.calls) for j, _ in call.made_of)
    for number, call in enumerate(plan.calls):
        for source, weight in call.made_of:
            start, stop = across.calls[source] * FINE, across.calls[number] * FINE
            height = (base - 8 * FINE) * ((stop - start) / (span * FINE)) ** 0.5
            thick = round(min(4.0, max(0.6, 1.5 * abs(weight))) * FINE)
            draw.arc([start, base - height, stop, base + height], 180, 360, PLUS if weight > 0 else MINUS, thick)
    draw.rectangle([0, base + FINE, fine.width, fine.height], "white")   # the lower halves of wide lines
    for call, x in zip(plan.calls, across.calls, strict=True):
        draw_dot(draw, x * FINE, base, min(across.dot, 4) * FINE, call.does)
    return framed(fine, draw)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty area, larger by FINE."""
    fine = Image.new("RGB", (width * FINE, height * FINE), (255, 255, 255))
    return fine, ImageDraw.Draw(fine)


def framed(fine: Image.Image, draw: ImageDraw.ImageDraw) -> Image.Image:
    """The area with its frame, at its size."""
    draw.rectangle([0, 0, fine.width - 1, fine.height - 1], outline=FAINT, width=FINE)
    return fine.resize((fine.width // FINE, fine.height // FINE), Image.Resampling.BOX)


def draw_dot(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, does: str) -> None:
    """Full for a run, a ring for a forecast, half full for what depends on the run."""
    box = [x - size, y - size, x + size, y + size]
    draw.ellipse(box, RUNS if does == "run" else "white", RUNS, round(1.5 * FINE))
    if does == "depends":
        draw.pieslice(box, 90, 270, RUNS, RUNS)


def write_weights(canvas: Canvas, left: int, y: int, calls: Sequence[Call], across: Across) -> int:
    """The weights of each forecast beneath it, the oldest output's first, where they fit; returns the y below."""
    below = y
    wide = max(text_width(f"{weight:+.2f}", SMALL) for call in calls for _, weight in call.made_of)
    for call, x in zip(calls, across.calls, strict=True):
        if call.made_of and len(call.made_of) <= LABELLED and wide + 2 <= across.closest:
            for i, (_, weight) in enumerate(call.made_of):
                text = f"{weight:+.2f}"
                at = round(left + x) - text_width(text, SMALL) // 2
                colour = PLUS if weight > 0 else MINUS
                below = max(below, canvas.write(at, y + i * line_height(SMALL), text, SMALL, colour)[3])
    return below


def draw_legend(canvas: Canvas, y: int) -> int:
    """What dots, shade and arcs mean; returns the y below."""
    x, side = MARGIN, line_height(TEXT)
    for sign, text in LEGEND:
        canvas.paste(x, y, sign_of(sign, side))
        x = canvas.write(x + side + 6, y, text)[2] + 18
    return y + side


def sign_of(sign: str, side: int) -> Image.Image:
    """The picture of one entry of the legend."""
    fine, draw = blank(side, side)
    middle = side * FINE / 2
    if sign == "shade":
        draw.rectangle([0, 0, fine.width, fine.height], SHADE)
    elif sign in ("plus", "minus"):
        draw.line([(0, middle), (fine.width, middle)], PLUS if sign == "plus" else MINUS, 2 * FINE)
    else:
        draw.rectangle([0, 0, fine.width, fine.height], (250, 250, 248))
        draw_dot(draw, middle, middle, DOT[1] * FINE, sign)
    return fine.resize((side, side), Image.Resampling.BOX)


def draw_table(canvas: Canvas, y: int, width: int, rows: Sequence[tuple[str, ...]]) -> int:
    """A line for each cache; the first column takes what the others leave; returns the y below."""
    others = (width - 200) // (len(rows[0]) - 1)
    for number, line in enumerate(rows):
        for i, cell in enumerate(line):
            x = MARGIN + (200 + (i - 1) * others if i else 0)
            canvas.write(x, y, cut(cell, (others if i else 200) - 8), colour=INK if number else FAINT)
        y += line_height(TEXT) + 2
    return y
