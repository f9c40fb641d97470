"""Starting points by model family and by length of the schedule."""

from __future__ import annotations

from itertools import pairwise, product
from types import SimpleNamespace

import pytest
from interspatial.models.families import FAMILIES
from interspatial.models.schedule import Schedule

NAMES = [family.name for family in FAMILIES]


@pytest.fixture
def presets(comfy):
    from interspatial.models.cache import presets

    return presets


def schedule(steps: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Even steps over a part of a flow model's noise range, at shift 1: sigma is 1 - percent."""
    return Schedule([1 - start - (end - start) * i / steps for i in range(steps + 1)], lambda percent: 1 - percent)


def family(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name)


@pytest.mark.parametrize(("name", "steps", "interval", "first", "last"), [
    ("wan", 20, 2, 5, 2), ("wan", 30, 2, 8, 2), ("wan", 50, 4, 10, 2), ("wan_5b", 50, 4, 10, 2),
    ("wan_s2v", 50, 2, 12, 2), ("hunyuan_video", 50, 4, 5, 1), ("hunyuan_video_15", 30, 3, 4, 1),
    ("ltxv", 40, 2, 10, 2), ("ltxav", 20, 2, 6, 2), ("cosmos_predict2", 35, 3, 5, 2), ("minimax_h3", 20, 2, 4, 1),
    ("flux", 20, 3, 3, 1), ("flux", 50, 6, 3, 1), ("qwen_image", 20, 2, 5, 2), ("lumina2", 50, 4, 5, 1),
    ("mochi", 64, 4, 8, 2)])  # fmt: skip
def test_the_table(presets, name, steps, interval, first, last):
    preset = presets.preset_of(family(name), schedule(steps))
    assert (preset.interval, preset.first, preset.last, preset.why) == (interval, first, last, None)


def test_an_unknown_model_has_the_general_rows(presets):
    assert presets.preset_of(None, schedule(20)) == presets.preset_of(family("hunyuan_image"), schedule(20))
    assert presets.preset_of(None, schedule(40)).interval == 4
    assert presets.preset_of(None, schedule(40)).name == "any model from 40 steps"


@pytest.mark.parametrize("steps", [1, 4, 8, 11])
def test_few_steps_are_left_alone_and_it_says_why(presets, steps):
    preset = presets.preset_of(family("ltxv"), schedule(steps))
    assert f"a schedule of {steps} steps has strides too long" in preset.why
    assert presets.preset_of(family("ltxv"), schedule(12)).why is None


@pytest.mark.parametrize(("start", "end", "first", "last"), [(0.0, 0.5, 5, 0), (0.5, 1.0, 2, 2), (0.3, 0.8, 2, 0)])
def test_a_part_of_the_noise_range(presets, start, end, first, last):
    """Ten steps over half of the range are as long as those of 20: the high and low noise models of Wan 2.2."""
    part = schedule(10, start, end)
    assert presets.full_steps(part) == 20
    preset = presets.preset_of(family("wan"), part)
    assert (preset.interval, preset.first, preset.last, preset.why) == (2, first, last, None)


def test_four_steps_of_eight_are_few(presets):
    assert "a schedule of 8 steps" in presets.preset_of(family("wan"), schedule(4, 0.0, 0.5)).why


def test_a_run_of_nothing(presets):
    assert presets.full_steps(Schedule([], lambda percent: 1 - percent)) == 0
    assert presets.preset_of(None, Schedule([0.5], lambda percent: 1 - percent)).why


def test_every_row_is_of_a_family_and_leaves_something_out(presets):
    assert {name for row in presets.TABLE for name in row.families} <= set(NAMES)
    for name, steps in product(NAMES, (12, 20, 30, 40, 50, 100)):
        preset = presets.preset_of(family(name), schedule(steps))
        assert preset.interval >= 2 and preset.first >= 2, "a forecast needs two outputs, and a stride to leave out"
        assert preset.first + preset.last <= steps / 2


def test_longer_schedules_save_no_less(presets):
    """Share of the steps that run, at the same family: never higher for more steps, but for rounding by a step."""
    for name in NAMES:
        shares = []
        for steps in (20, 30, 50, 100):
            preset = presets.preset_of(family(name), schedule(steps))
            free = steps - preset.first - preset.last
            shares.append((preset.first + preset.last + free / preset.interval) / steps)
        assert all(later <= earlier + 0.05 for earlier, later in pairwise(shares)), (name, shares)
