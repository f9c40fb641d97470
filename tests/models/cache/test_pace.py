"""Which steps run: schedules written by hand."""

from __future__ import annotations

import pytest
from interspatial.models.cache.pace import PACES, Fixed, Growing


def runs(pace, steps: int, first: int, last: int = 0) -> list[int]:
    """The steps that run when nothing but the pace, the first and the last ones asks for it."""
    memory, ran = pace.begin(), -1
    found = []
    for step in range(steps):
        wants = pace.runs(memory, step - ran, None)
        if wants or not first <= step < steps - last:
            found.append(step)
            ran = step
    return found


@pytest.mark.parametrize(("interval", "first", "steps", "last", "want"), [
    (5, 1, 20, 0, [0, 5, 10, 15]),
    (5, 1, 20, 1, [0, 5, 10, 15, 19]),
    (6, 3, 50, 0, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),
    (6, 3, 50, 1, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44, 49]),
    (1, 1, 7, 0, [0, 1, 2, 3, 4, 5, 6]),
    (4, 0, 9, 0, [3, 7]),
])  # fmt: skip
def test_fixed(interval, first, steps, last, want):
    """The published vectors; counting starts again at the last of the first steps."""
    assert runs(Fixed(interval), steps, first, last) == want


@pytest.mark.parametrize(("window", "flex", "want"), [
    (2.0, 0.75, [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46, 49]),
    (2.0, 3.0, [0, 1, 2, 3, 4, 6, 11, 19, 30, 44, 49]),
    (3.0, 0.0, [0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43, 46, 49]),
])  # fmt: skip
def test_growing(window, flex, want):
    """Spectrum's: the window has 2, 2.75, 3.5, 4.25, 5, 5.75, 6.5, 7.25, 8 steps; only whole ones count."""
    assert runs(Growing(window, flex), 50, 5, 1) == want


def test_growing_starts_again_with_each_memory():
    pace = Growing()
    assert runs(pace, 20, 2) == runs(pace, 20, 2)


def test_a_preview_says_what_the_run_does():
    for pace in (Fixed(3), Growing(2.0, 1.5)):
        seen, run = pace.begin(), pace.begin()
        for gap in (1, 1, 2, 3, 1, 2, 3, 4, 1):
            assert pace.foreseen(seen, gap) == pace.runs(run, gap, None)


def test_paces_are_registered_with_their_widgets(comfy):
    from comfy_api.latest import io

    assert {"fixed", "growing", "seacache"} <= set(PACES)
    for pace in PACES.values():
        defaults = {i.id: i.default for i in pace.inputs(io)}
        assert pace(**defaults) == pace(), "a widget's default is the setting's"
        assert pace.summary
