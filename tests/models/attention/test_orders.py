"""Token orders: every token in one slot, kinds never mixed, tiles balanced, and the published permutation."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.attention import blocks
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.orders import cube, raster, shared_tokens, strip, tile
from interspatial.models.layout import arrange
from interspatial.tests.models.attention.contract import call_of

ORDERS = {
    "raster 64": lambda layout: raster(layout, 64),
    "raster 7": lambda layout: raster(layout, 7),
    "strip 64": strip,
    "strip 12, bands of 5": lambda layout: strip(layout, 12, 5),
    "tile 8": tile,
    "tile 3": lambda layout: tile(layout, 3),
    "tile 8x16": lambda layout: tile(layout, (8, 16)),
    "cube 4": cube,
    "cube 2x3x5": lambda layout: cube(layout, (2, 3, 5)),
}
GRIDS = [(1, 1, 1), (1, 1, 9), (5, 8, 8), (9, 8, 8), (3, 30, 52), (2, 45, 80), (4, 17, 13)]
SURROUNDINGS = {
    "video": ([], []),
    "text first": ([("text", 77)], []),
    "text last": ([], [("text", 226)]),
    "all kinds": ([("text", 5), ("reference", (1, 8, 8))], [("audio", 31), ("pose", 1), ("padding", 64)]),
}


def layout_of(grid, around="video"):
    before, after = SURROUNDINGS[around]
    return arrange([*before, ("video", grid), *after])


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "x".join(map(str, g)))
@pytest.mark.parametrize("order", ORDERS)
def test_every_token_has_one_slot_and_kinds_never_mix(order, grid, around):
    layout = layout_of(grid, around)
    blocks = ORDERS[order](layout)
    table, live = blocks.slots[0], blocks.live[0]
    assert table.dtype == live.dtype == torch.int32
    filled = table >= 0
    assert torch.equal(table[filled].sort().values, torch.arange(layout.tokens, dtype=torch.int32))
    assert torch.equal(filled, torch.arange(table.shape[1]) < live[:, None])  # live slots first, no block empty
    assert int(live.min()) >= 1 and int(live.max()) == table.shape[1]
    kind = {t: segment.start for segment in layout.segments for t in range(segment.start, segment.stop)}
    for number, block in enumerate(table.tolist()):
        tokens = [t for t in block if t >= 0]
        assert len({kind[t] for t in tokens}) == 1
        is_video = layout.video.start <= tokens[0] < layout.video.stop
        assert is_video == (blocks.video[0] <= number < blocks.video[1])
        assert is_video != any(first <= number < last for first, last in blocks.other)
        if not is_video:  # consecutive tokens, no longer than a video block
            assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))


def places(layout, blocks):
    """(frame, row, column) of the tokens of each video block, [n, 3] each."""
    _, rows, columns = layout.grid
    for i in range(*blocks.video):
        token = blocks.slots[0, i, : int(blocks.live[0, i])].long() - layout.video.start
        yield torch.stack((token // (rows * columns), token // columns % rows, token % columns), 1)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "x".join(map(str, g)))
@pytest.mark.parametrize(("order", "side"), [("tile 8", (1, 8, 8)), ("tile 3", (1, 3, 3)), ("cube 2x3x5", (2, 3, 5))])
def test_boxes_are_whole_balanced_and_in_raster_order(order, side, grid):
    layout = layout_of(grid, "text first")
    corners, extents = [], []
    for place in places(layout, ORDERS[order](layout)):
        low, high = place.min(0).values, place.max(0).values
        extent = high - low + 1
        assert len(place) == extent.prod()  # a full box
        assert torch.equal(
            place, torch.cartesian_prod(*(torch.arange(a, b + 1) for a, b in zip(low, high, strict=True)))
        )
        corners.append(low.tolist())
        extents.append(extent)
    assert corners == sorted(corners)
    assert len(corners) == math.prod(math.ceil(extent / s) for extent, s in zip(grid, side, strict=True))
    extents = torch.stack(extents)
    assert (extents <= torch.tensor(side)).all()
    assert (extents.max(0).values - extents.min(0).values <= 1).all()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "x".join(map(str, g)))
@pytest.mark.parametrize("size", [7, 64])
def test_raster_runs_stay_in_their_frame(size, grid):
    layout = layout_of(grid, "text first")
    blocks = raster(layout, size)
    frame = grid[1] * grid[2]
    sizes = []
    for i in range(*blocks.video):
        token = blocks.slots[0, i, : int(blocks.live[0, i])].long() - layout.video.start
        assert torch.equal(token, torch.arange(int(token[0]), int(token[0]) + len(token)))
        assert token[0] // frame == token[-1] // frame
        sizes.append(len(token))
    assert len(sizes) == grid[0] * math.ceil(frame / size) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("size", "side"), [(64, None), (128, None), (12, 5), (7, 1)])
@pytest.mark.parametrize("grid", [(1, 45, 80), (2, 30, 52), (3, 7, 5), (1, 1, 30)], ids=str)
def test_strips_are_equal_pieces_in_one_part(grid, size, side):
    """Sizes differ by one token at most. Each token of a block touches another one of it, all the way through; where a
    path folds from one band into the next, a block may be in two parts.
    """
    layout = layout_of(grid)
    frames, rows, columns = grid
    order = strip(layout, size, side)
    assert int(order.live.max()) - int(order.live.min()) <= 1
    assert order.slots.shape[1] == frames * math.ceil(rows * columns / size)
    split = 0
    for block in order.slots[0].tolist():
        left = {divmod(token % (rows * columns), columns) for token in block if token >= 0}
        assert len({token // (rows * columns) for token in block if token >= 0}) == 1
        parts = 0
        while left:
            parts, reached = parts + 1, [left.pop()]
            while reached:
                y, x = reached.pop()
                near = {(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)} & left
                reached, left = [*reached, *near], left - near
        split += parts == 2
        assert parts <= 2
    assert split <= frames * (math.ceil(rows / (side or round(size**0.5))) - 1)


def test_the_path_of_strips():
    """Two bands of two rows: down, across, up; at the end of a band into the next and back."""
    order = strip(layout_of((1, 4, 3)), 5, 2)
    assert order.slots[0].tolist() == [[0, 1, 3, 4], [2, 5, 8, 11], [6, 7, 9, 10]]


def test_the_permutation_of_draft_attention():
    """8 x 16 patches on a 16 x 32 frame, arXiv 2505.14708."""
    slot = tile(layout_of((1, 16, 32)), (8, 16)).slots.flatten()
    assert slot[:3].tolist() == [0, 1, 2] and slot[15:19].tolist() == [15, 32, 33, 34]
    assert [int(slot[i]) for i in (127, 128, 255, 256)] == [239, 16, 255, 256]


def test_ragged_extents_are_cut_evenly():
    """45 rows of 80 columns in tiles of 8: six rows of tiles, (8, 8, 8, 7, 7, 7) high, ten of 8 wide."""
    live = tile(layout_of((1, 45, 80))).live[0].view(6, 10)
    assert live[:, 0].tolist() == [64, 64, 64, 56, 56, 56]
    assert (live == live[:, :1]).all()


def test_slots_are_no_wider_than_the_largest_video_block():
    assert tile(layout_of((5, 6, 6), "text last")).slots.shape[2] == 36
    assert raster(layout_of((5, 6, 6), "text last")).slots.shape[2] == 36


def test_to_moves_the_tables():
    moved = tile(layout_of((2, 9, 9), "text last")).to("meta")
    assert moved.slots.device.type == moved.live.device.type == "meta" and moved.video == (0, 8)


@pytest.mark.parametrize("make", [raster, tile, cube])
def test_a_side_below_one_is_refused(make):
    with pytest.raises(ValueError, match="1 token or more, not 0"):
        make(layout_of((2, 9, 9)), 0)


@pytest.mark.parametrize("name", blocks.ORDERS)
@pytest.mark.parametrize("extents", [(3, 9, 20), (5, 8, 8), (2, 15, 7)], ids=str)
def test_doubled_blocks_hold_the_same_tokens_in_fewer_blocks(name, extents):
    layout = arrange([("text", 5), ("video", extents)])
    call, asked = call_of(layout, batch=1, heads=1), Blocks(name, 3)
    plain, doubled = asked.of(call), asked.doubled(call).order
    assert sorted(doubled.slots[doubled.slots >= 0].tolist()) == list(range(layout.tokens))
    assert doubled.slots.shape[1] < plain.slots.shape[1] and doubled.slots.shape[2] <= 2 * (27 if name == "cube" else 9)
    assert asked.doubled(call).order is doubled  # built once a run


def test_boxes_are_doubled_where_that_leaves_fewest():
    """45 rows and 80 columns in eights are 6 x 10 tiles, doubled 6 x 5. 30 and 52: 4 x 7, doubled 2 x 7, not 4 x 4."""
    sizes = {}
    for rows, columns in ((45, 80), (30, 52)):
        call = call_of(arrange([("video", (1, rows, columns))]), batch=1, heads=1)
        sizes[rows] = Blocks("tile").doubled(call).order.slots.shape[1:]
    assert sizes == {45: (30, 128), 30: (14, 120)}


def test_pairs_that_share_a_token():
    layout = arrange([("text", 3), ("video", (2, 9, 20))])
    wide, small = tile(layout, (8, 16)), tile(layout, 8)
    want = torch.zeros(wide.video[1] - wide.video[0], small.video[1] - small.video[0], dtype=torch.bool)
    for i, one in enumerate(wide.slots[0, slice(*wide.video)].tolist()):
        for j, other in enumerate(small.slots[0, slice(*small.video)].tolist()):
            want[i, j] = bool({*one} & {*other} - {-1})
    assert torch.equal(shared_tokens(wide, small), want)
    assert torch.equal(shared_tokens(small, small), torch.eye(len(want[0]), dtype=torch.bool))
