"""Lists, maps and shares of a plan, and the plans that are refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, check_plan, kept_lists, kept_mask, kept_share


def test_lists_and_map_are_the_same_thing():
    keep = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[0, 0], keep[0, 1] = False, True
    cols, counts = kept_lists(keep)
    slots = torch.arange(11, dtype=torch.int32).view(1, 11, 1)
    live = torch.ones(1, 11, dtype=torch.int32)
    plan = BlockPlan(slots[:, :9], slots, live[:, :9], live, cols, counts)
    assert torch.equal(kept_mask(plan), keep)
    for g in range(3):
        for i in range(9):
            assert cols[g, i, : counts[g, i]].tolist() == keep[g, i].nonzero().flatten().tolist()
    assert math.isclose(kept_share(plan), keep.float().mean(), rel_tol=1e-6)


def test_a_width_caps_the_lists():
    keep = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0)) < 0.4
    cols, counts = kept_lists(keep)
    short, capped = kept_lists(keep, width=2)
    assert torch.equal(short, cols[..., :2]) and torch.equal(capped, counts.clamp(max=2))


def test_kept_share_counts_tokens(case):
    one = case(500, "before")
    sizes = torch.tensor([len(block) for block in one.blocks]).double()
    want = (one.keep.double() * sizes[:, None] * sizes).sum() / (len(one.keep) * 500 * 500)
    assert math.isclose(kept_share(one.plan), want, rel_tol=1e-5)


def changed(plan: BlockPlan, name: str, place: tuple, value: int) -> BlockPlan:
    table = getattr(plan, name).clone()
    table[place] = value
    return replace(plan, **{name: table})


def test_plans_of_orders_and_ragged_lists_pass(case, slot_table):
    for tokens, text, kept in ((1, "absent", "none"), (129, "before", "some"), (500, "after", "all")):
        one = case(tokens, text, kept)
        check_plan(one.plan, tokens, tokens)
        check_plan(replace(one.plan, full=((0, len(one.blocks)),)), tokens, tokens)
    slots, live = slot_table([[0], []])
    own, own_live = slot_table([[2, 0, 1]])
    check_plan(BlockPlan(own, slots, own_live, live, *kept_lists(torch.ones(4, 1, 2, dtype=torch.bool))), 3, 1)


def test_a_plan_that_does_not_cover_its_tokens_is_refused(case):
    one = case(500, "before")
    plan, (size, width) = one.plan, one.plan.k_slots.shape[1:]
    last, end = size - 1, one.plan.k_live[0, -1] - 1  # of the last block
    short = next(i for i, block in enumerate(one.blocks) if len(block) < width)
    other, counts = one.blocks[1][0], plan.counts.clone()
    row = next(i for i in range(1, size) if plan.counts[1, i] > 1)
    counts[0, 1] = size + 1
    cases = [
        (changed(plan, "k_slots", (0, last, end), -1), "1 key tokens of 500 are in no slot"),
        (changed(plan, "q_slots", (0, last, end), other), "1 query tokens of 500 are in no slot"),
        (changed(plan, "k_slots", (0, short, width - 1), other), "1 key tokens of 500 are in several slots"),
        (
            changed(plan, "k_slots", (0, last, end), 500),
            "1 key slots hold a number that no token has; accepted are 0 to 499",
        ),
        (changed(plan, "q_slots", (0, last, end), -2), "1 query slots hold a number"),
        (changed(plan, "k_live", (0, 2), 3), "1 key blocks give another number of live slots"),
        (changed(plan, "cols", (1, row, 0), size), f"1 listed key blocks are outside 0 to {last}"),
        (changed(plan, "cols", (1, row, 0), -1), "1 listed key blocks are outside"),
        (changed(plan, "cols", (1, row, 0), plan.cols[1, row, 1]), "1 key blocks are listed more than once"),
        (replace(plan, counts=counts), f"1 counts are outside 0 to {size}"),
        (changed(plan, "counts", (2, 1), -1), "1 counts are outside"),
        (replace(plan, full=((0, size + 1),)), f"must ascend within 0 to {size}"),
        (replace(plan, full=((2, 3), (1, 2))), "must ascend"),
        (replace(plan, full=((1, 1),)), "must ascend"),
        (replace(plan, cols=plan.cols.long()), "cols are torch.int64; the kernels read int32"),
        (replace(plan, q_live=plan.q_live[:, 1:]), "q_live are"),
        (replace(plan, counts=None, cols=plan.cols[:, 1:]), f"for {last} query blocks, and has {size}"),
    ]
    for broken, words in cases:
        with pytest.raises(ValueError, match=re.escape(words)):
            check_plan(broken, 500, 500)
    with pytest.raises(ValueError, match="1 query tokens of 501 are in no slot"):
        check_plan(plan, 501, 500)


def test_padding_before_a_token_is_refused(case):
    one = case(500)
    slots = one.plan.k_slots.clone()
    slots[0, 0] = slots[0, 0].roll(1)
    if one.plan.k_live[0, 0] == slots.shape[2]:
        pytest.fail("the first block is to have padding")
    with pytest.raises(ValueError, match="1 key blocks have padding before a token"):
        check_plan(replace(one.plan, k_slots=slots), 500, 500)
