"""The picture and the words of a step cache's plan."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
from interspatial.models.measure.cache_plan_picture import (
    HEIGHTS,
    RUNS,
    SHADE,
    Across,
    arc_area,
    draw_plans,
    lay_out,
    row,
    sigma_area,
)
from interspatial.models.measure.cache_plan_table import as_text, bytes_of, cells, describe, saving_of, step_lines
from interspatial.models.measure.canvas import to_tensor
from interspatial.models.measure.picture import MARGIN
from interspatial.models.measure.plot import nice_ticks
from interspatial.models.schedule import Schedule


@pytest.fixture
def plan_of(comfy):
    """steps, calls in a step, interval, first, last -> a plan of a line through the last two runs"""
    from interspatial.models.cache import CACHES, StepCache
    from interspatial.models.cache.dry_run import Call
    from interspatial.models.cache.pace import Fixed
    from interspatial.models.cache.plan import Plan
    from interspatial.models.cache.presets import Preset
    from interspatial.models.cache.step_cache import Settled

    def make(steps=20, per_step=1, interval=3, first=4, last=2, does="forecast", why=None, entry=1000, top=1.0):
        schedule = Schedule([top * (1 - i / steps) for i in range(steps + 1)], lambda percent: top * (1 - percent))
        calls, runs = [], []
        for step in range(steps):
            for part in range(per_step):
                number, sigma = len(calls), top * (1 - (step + part / per_step) / steps)
                if why or step < first or step >= steps - last or (step - first) % interval == interval - 1:
                    calls.append(Call(step, sigma, "run", "interval"))
                    runs.append(number)
                else:
                    made_of = ((runs[-2], -0.5), (runs[-1], 1.5)) if does == "forecast" else ()
                    calls.append(Call(step, sigma, does, "" if does == "forecast" else "by the latent", made_of))
        preset = Preset("wan from 31 steps", interval, first, last)
        settled = Settled(preset, Fixed(interval), first, last, "output", "device", True)
        ahead = SimpleNamespace(schedule=schedule, assumed=None, shapes=() if entry is None else ((1, 16, 3, 8, 12),))
        cache = StepCache(CACHES["taylorseer"](), Fixed(interval), first, last)
        return Plan(cache, ahead, settled, tuple(calls), why, "", 0 if why else 2, entry)

    return make


CASES = [
    {}, {"steps": 1, "first": 0, "last": 0, "interval": 1}, {"steps": 2, "first": 1, "last": 1}, {"steps": 50},
    {"steps": 100, "per_step": 2}, {"steps": 13, "per_step": 3, "top": 14.6}, {"does": "depends", "entry": None},
    {"steps": 8, "why": "a schedule of 8 steps has strides too long to forecast over; " * 4},
    {"steps": 9, "first": 2, "last": 0, "interval": 2}, {"steps": 1000, "first": 100},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_collides_and_nothing_leaves_the_sheet(plan_of, case):
    plans = [plan_of(**case)] * (2 if case.get("steps", 20) < 50 else 1)
    canvas = lay_out(plans, "20 steps of euler, " + "simple " * 40, 2)
    rendered = canvas.render(MARGIN)
    boxes = [(box, text) for box, text, *_ in canvas.words] + [(box, "picture") for box, _ in canvas.pictures]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= rendered.width and bottom <= rendered.height, text
    for (a, text_a), (b, text_b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{text_a!r} at {a} lies on {text_b!r} at {b}"


def colour_at(picture, x: float, y: float) -> tuple:
    return picture.getpixel((round(x), round(y)))


def near(a: tuple, b: tuple) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 12


@pytest.mark.parametrize("per_step", [1, 2])
def test_dots_stand_at_their_sigma_and_say_what_the_call_does(plan_of, per_step):
    for does in ("forecast", "depends"):
        plan = plan_of(steps=12, per_step=per_step, does=does)
        across, ticks = Across(plan, 700), nice_ticks(0.0, 1.0)
        picture = sigma_area(plan, across, ticks)
        for call, x in zip(plan.calls, across.calls, strict=True):
            y = row(call.sigma, ticks)
            left, right = colour_at(picture, x - 2, y), colour_at(picture, x + 2, y)
            assert near(left, RUNS) == (call.does != "forecast")
            assert near(right, RUNS) == (call.does == "run")


def test_calls_stand_in_their_step(plan_of):
    plan = plan_of(steps=7, per_step=3)
    across = Across(plan, 500)
    assert across.calls == sorted(across.calls)
    for call, x in zip(plan.calls, across.calls, strict=True):
        assert across.x(call.step - 0.5) < x < across.x(call.step + 0.5)
    assert across.x(-0.5) > 0 and across.x(7.5) < 500


def test_steps_that_always_run_are_shaded(plan_of):
    plan = plan_of(steps=10, first=3, last=2)
    across, ticks = Across(plan, 600), nice_ticks(0.0, 1.0)
    picture = sigma_area(plan, across, ticks)
    bottom = HEIGHTS[0] - 6   # below the schedule and the grid
    shaded = [near(colour_at(picture, across.x(step), bottom), SHADE) for step in range(10)]
    assert shaded == [True] * 3 + [False] * 5 + [True] * 2
    bare = sigma_area(plan_of(steps=10, first=0, last=0, interval=1), across, ticks)
    assert not any(near(colour_at(bare, across.x(step), bottom), SHADE) for step in range(10))


def test_arcs_join_each_forecast_with_what_it_is_made_of(plan_of):
    """Two arcs end at each forecast: one of each colour, none at a step that forecasts nothing."""
    plan = plan_of(steps=6, first=2, last=1, interval=9)
    across = Across(plan, 600)
    picture = to_tensor(arc_area(plan, across))
    red_over_blue = picture[..., 0] - picture[..., 2]   # also where a thin line is pale
    for hits, source in ((red_over_blue < -0.1, 1), (red_over_blue > 0.1, 0)):
        columns = hits[: HEIGHTS[1] - 30].any(0).nonzero().flatten()   # above the dots
        slack = (across.x(1) - across.x(0)) / 2   # arcs are steep at their feet, which are left out and may overlap
        assert across.calls[source] - 3 <= columns.min() < across.calls[source] + slack
        assert across.calls[4] - slack < columns.max() <= across.calls[4] + 3


def test_no_arcs_without_forecasts(plan_of):
    with_arcs, without = (lay_out([plan_of(does=does)], "", 2) for does in ("forecast", "depends"))
    assert len(with_arcs.pictures) == len(without.pictures) + 1
    weights = [text for _, text, *_ in with_arcs.words if text in ("-0.50", "+1.50")]
    assert len(weights) == 2 * sum(call.does == "forecast" for call in plan_of().calls)


def test_a_sheet(plan_of):
    sheet = draw_plans([plan_of()], "20 steps", 2)
    assert sheet.shape[1:] == (900, 3) and sheet.min() >= 0 and sheet.max() <= 1


def test_the_words(plan_of):
    plan = plan_of(steps=13, first=4, last=2)
    assert describe(plan, 2) == [
        "TaylorSeer, order 1, predictor divided differences; put back at output",
        "Fixed, interval 3; the first 4 and the last 2 of 13 steps always run",
        "5 of 13 model calls are forecast",
        "history: 2 outputs for each of 2 prompts, 0.0 MB",
    ]
    assert step_lines(plan)[4] == "    4  0.6923  forecast from 2 (-0.50), 3 (+1.50)"
    assert step_lines(plan)[6] == "    6  0.5385  run: interval"
    assert cells([plan], 2)[1] == ("TaylorSeer", "13", "8", "5", "0", "38 %", "0.0 MB")
    assert len({len(line) for line in as_text(cells([plan, plan], 2))}) == 1


def test_the_words_of_what_is_open(plan_of):
    plan = plan_of(steps=10, does="depends", entry=None)
    assert describe(plan, 1)[2:] == [
        "0 of 10 model calls are forecast for sure, 3 more depend on the latent",
        "history: 2 outputs for each of 1 prompt, connect latent_image to see its size",
    ]
    assert cells([plan], 1)[1][4:] == ("3", "0 to 30 %", "unknown")


def test_the_words_of_several_calls_a_step(plan_of):
    lines = step_lines(plan_of(steps=6, per_step=2, first=2, last=1))
    assert lines[5] == "  2.1  0.5833  forecast from 1.0 (-0.50), 1.1 (+1.50)"


def test_the_words_of_a_refusal(plan_of):
    plan = plan_of(steps=8, why="the reason")
    assert describe(plan, 2)[1:] == ["no call can be left out: the reason", "history: none"]
    assert saving_of(plan) == "0 %"


@pytest.mark.parametrize(("count", "text"), [
    (None, "unknown"), (0, "0.0 MB"), (17_300_000, "17.3 MB"), (1_342_177_280, "1.34 GB")])  # fmt: skip
def test_sizes(count, text):
    assert bytes_of(count) == text
