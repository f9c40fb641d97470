"""TokenLayout: segments cover the sequence, errors are sentences, keys tell layouts apart."""

from __future__ import annotations

import pytest
from interspatial.models.layout import LayoutError, Segment, TokenLayout, arrange

GRID = (3, 4, 6)


def test_arrange_lays_parts_end_to_end():
    layout = arrange([("reference", 24), ("text", 7), ("video", GRID), ("audio", 0), ("padding", 5)])
    assert [(s.kind, s.start, s.stop) for s in layout.segments] == [
        ("reference", 0, 24), ("text", 24, 31), ("video", 31, 103), ("padding", 103, 108)]
    assert layout.tokens == 108
    assert layout.grid == GRID == layout.video.grid
    assert (layout.video.start, layout.video.stop, len(layout.video)) == (31, 103, 72)
    assert layout.frame_tokens == 24


def test_equal_layouts_are_one_key():
    one, two = (arrange([("text", 7), ("video", GRID)]) for _ in range(2))
    assert one == two
    assert one.key == two.key
    assert {one: "state"}[two] == "state"


@pytest.mark.parametrize("parts", [
    [("text", 8), ("video", GRID)],
    [("video", GRID), ("text", 7)],
    [("text", 7), ("video", (6, 4, 3))],
    [("reference", 7), ("video", GRID)],
    [("text", 3), ("text", 4), ("video", GRID)],
], ids=["longer text", "other order", "other grid", "other kind", "two texts"])
def test_other_layouts_have_other_keys(parts):
    assert arrange(parts).key != arrange([("text", 7), ("video", GRID)]).key


@pytest.mark.parametrize(("segments", "tokens", "says"), [
    ((Segment("text", 0, 7), Segment("video", 8, 80, GRID)), 80, "a gap"),
    ((Segment("text", 0, 7), Segment("video", 6, 78, GRID)), 78, "an overlap"),
    ((Segment("text", 0, 7), Segment("video", 7, 79, GRID)), 80, "cover 79 of 80"),
    ((Segment("text", 0, 7),), 7, "exactly one video segment, this one has 0"),
    ((Segment("video", 0, 72, GRID), Segment("video", 72, 144, GRID)), 144, "this one has 2"),
    ((Segment("video", 0, 72, (6, 4, 3)),), 72, "its video segment (6, 4, 3)"),
])
def test_wrong_segments_are_refused_with_a_sentence(segments, tokens, says):
    with pytest.raises(LayoutError) as error:
        TokenLayout(tokens, segments, GRID)
    assert says in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(("arguments", "says"), [
    (("prose", 0, 7), "Accepted: text, reference"),
    (("text", 7, 7), "it needs a token"),
    (("text", -1, 7), "from -1 to 7"),
    (("video", 0, 71, GRID), "has 71 tokens, but its grid 3 x 4 x 6 has 72"),
])
def test_wrong_segment_is_refused_with_a_sentence(arguments, says):
    with pytest.raises(LayoutError, match=says):
        Segment(*arguments)


def test_video_needs_its_grid():
    with pytest.raises(LayoutError, match="T x H x W"):
        arrange([("text", 7), ("video", 72)])
