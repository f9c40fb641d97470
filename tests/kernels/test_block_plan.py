"""Lists, maps and shares of a plan."""

from __future__ import annotations

import math

import torch
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask, kept_share


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
