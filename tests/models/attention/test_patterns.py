"""The fixed patterns as maps: what each keeps, its share, on every order and on ragged grids."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.attention.blocks import ORDERS, Blocks
from interspatial.models.attention.patterns import (
    FRAMES,
    HEADS,
    Pattern,
    blocks_kept,
    pattern_map,
    places_of,
    price,
    stripe_columns,
    stripe_map,
)
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import MIXED, call_of

pytestmark = pytest.mark.usefixtures("poisoned")

EVEN = arrange([("video", (5, 8, 8))])
BANDS = [pattern for pattern in HEADS if pattern.kind in ("diagonal", "places")]


def places(layout, order="tile", side=2):
    call = call_of(layout, batch=1, heads=1, dim=4)
    blocks = Blocks(order, side).of(call)
    return blocks, places_of(blocks, layout)


@pytest.mark.parametrize("order", ORDERS)
def test_centres_are_the_mean_places_of_the_tokens(order):
    blocks, where = places(MIXED, order, 3)
    tokens = (row[row >= 0].long() - MIXED.video.start for row in blocks.slots[0, slice(*blocks.video)])
    want = [torch.stack((t // 130, t // 13 % 10, t % 13), 1).double().mean(0) for t in tokens]
    torch.testing.assert_close(where.centre.double(), torch.stack(want), atol=1e-5, rtol=0)
    assert where.share.min() > 0 and where.share.max() < 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", [EVEN, MIXED], ids=["even", "mixed"])
@pytest.mark.parametrize("pattern", BANDS, ids=lambda pattern: pattern.name)
def test_a_band_keeps_its_share_in_every_row(pattern, layout, order):
    _, where = places(layout, order)
    keep = pattern_map(pattern, where)
    assert (keep.sum(1) == max(1, round(pattern.amount * len(where)))).all()
    assert keep.diagonal().all()


def test_the_diagonal_is_a_band_of_the_raster():
    """64 tokens in a row, blocks of 4: the nearest blocks on both sides, moved inwards at the ends."""
    _, where = places(arrange([("video", (1, 1, 64))]), "raster")
    keep = pattern_map(Pattern("diagonal", 5 / 16), where)
    for i in range(16):
        first = min(max(i - 2, 0), 11)
        assert keep[i].nonzero().flatten().tolist() == list(range(first, first + 5))


@pytest.mark.parametrize("order", ["raster", "tile", "cube", "morton"])
def test_the_diagonal_keeps_the_nearest_of_the_raster(order):
    _, where = places(MIXED, order, 3)
    token = (where.centre.double() * torch.tensor([130.0, 13.0, 1.0])).sum(1)
    keep = pattern_map(Pattern("diagonal", 0.25), where)
    for i in range(len(where)):
        apart = (token - token[i]).abs()
        assert apart[keep[i]].max() <= apart[~keep[i]].min() + 1e-3


def test_places_are_the_same_tile_in_all_frames():
    _, where = places(EVEN)
    keep = pattern_map(Pattern("places", 5 / 80), where)  # as many as there are frames
    tile = torch.arange(80) % 16
    assert torch.equal(keep, tile[:, None] == tile)
    more = pattern_map(Pattern("places", 25 / 80), where)  # inside: the four tiles that touch a side, in all frames
    row, column = tile // 4, tile % 4
    near = (row[:, None] - row).abs() + (column[:, None] - column).abs() <= 1
    inside = (row % 3 > 0) & (column % 3 > 0)
    assert torch.equal(more[inside], near[inside])


def test_places_begin_with_the_frames_around():
    _, where = places(EVEN)
    keep = pattern_map(Pattern("places", 3 / 80), where).view(5, 16, 5, 16).diagonal(dim1=1, dim2=3)[..., 0]
    assert keep.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]


def test_places_in_token_major_blocks_are_the_published_band():
    """There a block is some places in all frames, and nearest places are nearest blocks of one row."""
    _, where = places(arrange([("video", (4, 1, 32))]), "token_major", 4)  # 8 blocks of 4 places
    keep = pattern_map(Pattern("places", 3 / 8), where)
    for i in range(8):
        first = min(max(i - 1, 0), 5)
        assert keep[i].nonzero().flatten().tolist() == [first, first + 1, first + 2]


def test_frames_join_as_attention_tiles_do():
    _, where = places(EVEN)
    frame = torch.arange(80) // 16
    for share, chosen in ((0.4, (0, 3)), (0.0, (0,)), (1.0, (0, 1, 2, 3, 4))):
        reference = torch.isin(frame, torch.tensor(chosen))
        want = (frame[:, None] == frame) | reference[:, None] | reference
        assert torch.equal(pattern_map(Pattern("frames", share), where), want)


def test_a_skipped_head_keeps_its_own_blocks():
    _, where = places(MIXED)
    assert torch.equal(pattern_map(Pattern("skip"), where), torch.eye(len(where), dtype=torch.bool))
    assert pattern_map(Pattern("full"), where).all()


def test_stripes_take_the_columns_of_the_greatest_mass():
    mass = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    own, pattern = torch.eye(20, dtype=torch.bool), Pattern("stripes", 0.25)
    keep = stripe_map(stripe_columns(mass), pattern, own)
    for head in range(3):
        best = set(mass[head].topk(4).indices.tolist())
        for row in range(20):
            assert set(keep[head, row].nonzero().flatten().tolist()) == best | {row}
    assert keep.sum(-1).max() == blocks_kept(pattern, 20) == 5
    assert torch.equal(stripe_map(stripe_columns(mass), pattern, own[7:9]), keep[:, 7:9])


@pytest.mark.parametrize("pattern", [*HEADS, *FRAMES], ids=lambda pattern: pattern.name)
def test_the_price_is_the_share_of_the_map(pattern):
    _, where = places(MIXED)
    own = torch.eye(len(where), dtype=torch.bool)
    if pattern.kind == "stripes":
        keep = stripe_map(torch.arange(len(where)).flip(0)[None], pattern, own)[0]
    else:
        keep = pattern_map(pattern, where)
    assert price(pattern, len(where), keep) == pytest.approx(float(keep.float().mean()), rel=1e-5)
    if pattern.kind in ("diagonal", "places", "stripes"):
        assert float(keep.float().mean()) == pytest.approx(pattern.amount, abs=1 / len(where))


def test_one_block_is_enough():
    _, where = places(arrange([("video", (1, 2, 2))]))
    for pattern in (*HEADS, *FRAMES):
        if pattern.kind != "stripes":
            assert pattern_map(pattern, where).tolist() == [[True]]
    columns = stripe_columns(torch.ones(2, 1))
    assert stripe_map(columns, Pattern("stripes", 0.15), torch.ones(1, 1, dtype=torch.bool)).tolist() == [[[True]]] * 2


@pytest.mark.parametrize(("kind", "amount"), [("ring", 0.2), ("diagonal", 1.5), ("diagonal", -0.1)])
def test_what_is_no_pattern_is_refused(kind, amount):
    with pytest.raises(ValueError, match=r"no attention pattern 'ring'. Accepted|share from 0 to 1"):
        Pattern(kind, amount)


def test_names_say_how_much():
    assert [pattern.name for pattern in HEADS[:3]] == ["full", "skip", "diagonal 15 %"]
    assert [pattern.name for pattern in FRAMES] == [
        "full", "1 of 2 frames", "1 of 3 frames", "1 of 4 frames", "1 of 6 frames", "1 of 8 frames", "first frame",
    ]  # fmt: skip
