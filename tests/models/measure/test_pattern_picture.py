"""The picture and the words of a sparse pattern."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from interspatial.models.attention.pattern_table import Network, PatternTable
from interspatial.models.attention.patterns import FRAMES, HEADS
from interspatial.models.measure.canvas import to_tensor
from interspatial.models.measure.pattern_picture import colour_of, describe, draw_pattern, lay_out, shown_bins, use
from interspatial.models.measure.picture import MARGIN
from interspatial.tests.models.attention.contract import TILES


def table_of(layers=6, heads=12, bins=10, patterns=HEADS) -> PatternTable:
    """A table of random errors."""
    draw = torch.Generator().manual_seed(0)
    count = len(patterns)
    prices = torch.cat((torch.ones(1), torch.linspace(0.02, 0.5, count - 1)))
    errors = torch.rand(bins, layers, heads, count, generator=draw) * (1 - prices)
    return PatternTable(
        Network("wan", layers, heads, 128, "WanModel"), tuple(range(layers)), patterns, (5, 10, 13), TILES, "row", 0.3,
        torch.zeros(bins, layers, heads, dtype=torch.int8), prices, errors, torch.ones(bins, layers, dtype=torch.int32),
        torch.ones(layers, heads, 8, dtype=torch.float16), torch.rand(8, 3, generator=draw),
    ).chosen(0.3)  # fmt: skip


CASES = [(6, 2, 10, HEADS), (60, 40, 10, HEADS), (1, 1, 1, HEADS), (30, 12, 3, FRAMES), (50, 56, 2, HEADS)]


@pytest.mark.parametrize(("layers", "heads", "bins", "patterns"), CASES)
def test_nothing_collides_and_nothing_leaves_the_sheet(layers, heads, bins, patterns):
    table = table_of(layers, heads, bins, patterns)
    canvas = lay_out(table, describe(table))
    rendered = canvas.render(MARGIN)
    boxes = [(box, text) for box, text, *_ in canvas.words] + [(box, "picture") for box, _ in canvas.pictures]
    for (left, top, right, bottom), text in boxes:
        assert left >= 0 and top >= 0 and right <= rendered.width and bottom <= rendered.height, text
    for (a, text_a), (b, text_b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{text_a!r} at {a} lies on {text_b!r} at {b}"
    assert draw_pattern(table, []).shape[2] == 3


def test_a_cell_has_the_colour_of_its_pattern():
    table = table_of(5, 4, 3)
    canvas = lay_out(table, [])
    panels = [to_tensor(picture) for _, picture in canvas.pictures[len(HEADS) :]]
    assert len(panels) == 3
    for number, panel in zip(shown_bins(table), panels, strict=True):
        cell = panel.shape[0] // 5
        for layer in range(5):
            for head in range(4):
                want = torch.tensor(colour_of(HEADS[int(table.choice[number, layer, head])], HEADS)) / 255
                got = panel[layer * cell + 1, head * cell + 1]
                torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("patterns", [HEADS, FRAMES])
def test_every_pattern_has_its_own_colour(patterns):
    colours = [colour_of(pattern, patterns) for pattern in patterns]
    assert len(set(colours)) == len(patterns)
    assert all(0 <= part <= 255 for colour in colours for part in colour)


def test_only_what_was_calibrated_is_shown_and_counted():
    table = table_of(bins=10)
    calls = table.calls.clone()
    calls[[0, 1, 5, 9]] = 0
    choice = table.choice.clone()
    choice[[0, 1, 5, 9]] = 1
    choice[[2, 3, 4, 6, 7, 8]] = 0
    table = replace(table, calls=calls, choice=choice)
    assert shown_bins(table) == [2, 4, 8]
    assert [share for _, share in use(table)] == [1.0] + [0.0] * (len(HEADS) - 1)
    assert describe(table)[2] == "heads: full 100 %"
    assert describe(table)[3].startswith("6 attention calls a layer, in 6 of 10 parts")


def test_the_words_say_what_the_table_is():
    lines = describe(table_of())
    assert lines[0] == (
        "WanModel of family wan (6 layers, 12 heads of 128), latent grid 5 x 10 x 13, tile blocks of side 4, tail for "
        "each query"
    )
    assert lines[1].startswith("density 0.30 asked, 0.30 reached; error of a layer 0.")
