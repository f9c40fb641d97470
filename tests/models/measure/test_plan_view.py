"""Shares and looks of plans, against loops over tokens; with blocks for all heads, or each head's own."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask, kept_share
from interspatial.models.attention.orders import tile
from interspatial.models.attention.select import keep_all
from interspatial.models.layout import arrange
from interspatial.models.measure.plan_view import kept_shares, looks, query_rows

pytestmark = pytest.mark.usefixtures("poisoned")

PAIRS = 4  # batch entries x heads
LAYOUT = arrange([("text", 5), ("video", (2, 3, 7)), ("audio", 6)])
VIDEO = LAYOUT.video
SIZE = 8


def plan(own: bool, lists: int = PAIRS) -> BlockPlan:
    """Video tokens in random blocks, one of them empty; text and sound in blocks of their own, which see everything."""
    draw = torch.Generator().manual_seed(7)
    orders = []
    for _ in range(PAIRS if own else 1):
        video = torch.randperm(len(VIDEO), generator=draw) + VIDEO.start
        sizes = [8, 3, 0, 8, 8, 7, 8]
        parts = [torch.arange(5), *video.split(sizes), torch.arange(VIDEO.stop, LAYOUT.tokens)]
        orders.append(torch.stack([torch.nn.functional.pad(x, (0, SIZE - len(x)), value=-1) for x in parts]))
    slots = torch.stack(orders).int()
    live = (slots >= 0).sum(-1).int()
    keep = torch.rand(lists, slots.shape[1], slots.shape[1], generator=draw) < 0.4
    keep[:, :, [0, -1]] = True
    cols, counts = kept_lists(keep)
    last = slots.shape[1] - 1
    return BlockPlan(slots, slots, live, live, cols, counts, ((0, 1), (last, last + 1)))


def seen_tokens(plan: BlockPlan) -> torch.Tensor:
    """Which token sees which, by loops: bool [PAIRS, N, N]."""
    mask = kept_mask(plan)
    seen = torch.zeros(PAIRS, LAYOUT.tokens, LAYOUT.tokens, dtype=torch.bool)
    for g in range(PAIRS):
        slots, keep = plan.q_slots[g % len(plan.q_slots)], mask[g % len(mask)]
        for i, query in enumerate(slots):
            for j, key in enumerate(slots):
                if keep[i, j]:
                    for token in query[query >= 0].tolist():
                        seen[g, token, key[key >= 0].long()] = True
    return seen


each_plan = pytest.mark.parametrize(
    "made", [plan(False), plan(True), plan(False, 1), plan(True, 1)], ids=["shared", "own", "one list", "own, one list"]
)


@each_plan
def test_looks_are_the_mean_over_heads(made):
    seen = seen_tokens(made)[:, :, VIDEO.start : VIDEO.stop].float().mean(0)
    for token in (VIDEO.start, VIDEO.start + 17, VIDEO.stop - 1):
        assert torch.allclose(looks(made, token, VIDEO, PAIRS), seen[token])


@each_plan
@pytest.mark.parametrize("map_bytes", [1, 1 << 20])
def test_shares_are_counted_over_live_blocks_and_over_tokens(made, map_bytes):
    blocks, tokens = kept_shares(made, VIDEO, map_bytes)
    alive = [1, 2, 4, 5, 6, 7]  # video blocks with tokens
    assert blocks == pytest.approx(float(kept_mask(made)[:, alive][:, :, alive].float().mean()))
    assert tokens == pytest.approx(float(seen_tokens(made).float().mean()))
    assert tokens == pytest.approx(float(kept_share(made)))


def test_dense_is_one():
    made = keep_all(tile(LAYOUT, 2))
    assert kept_shares(made, VIDEO) == pytest.approx((1, 1))
    assert (looks(made, VIDEO.start, VIDEO, PAIRS) == 1).all()


def test_the_rows_of_a_place_share_its_tile():
    order = tile(LAYOUT, 4)  # 3 rows, columns in 4 and 3
    assert query_rows(order, VIDEO.start + 21 + 6).tolist() == [5 + 21 + i for i in (4, 5, 6, 11, 12, 13, 18, 19, 20)]
