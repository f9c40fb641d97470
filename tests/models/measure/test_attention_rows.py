"""Sampled rows: they cover the video evenly, and their figures are those of float64 loops."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask
from interspatial.models.attention.orders import tile
from interspatial.models.attention.select import keep_all, top_blocks
from interspatial.models.layout import arrange
from interspatial.models.measure.attention_rows import (
    exact_rows,
    kept_of_rows,
    mass_of_rows,
    recall,
    relative_l2,
    sample_rows,
)

pytestmark = pytest.mark.usefixtures("poisoned")

B, H, D = 2, 3, 16
LAYOUT = arrange([("text", 9), ("video", (3, 5, 7)), ("audio", 11)])
N = LAYOUT.tokens
SMALL = 8000  # bytes: a few rows of one head at a time


def inputs(seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(B, N, H, D, generator=draw) for _ in "qkv"]


def bias() -> torch.Tensor:
    """Some keys gone and some weighed down; the batch entries differ."""
    found = torch.zeros(B, N)
    found[0, ::4] = -torch.inf
    found[1, 5:30] = -1.5
    return found


def softmax(q, k, b, h, row, key_bias=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of one row, float64 [N], and its log-sum-exp."""
    score = k[b, :, h].double() @ q[b, row, h].double() * D**-0.5
    score = score if key_bias is None else score + key_bias[b].double()
    return score.softmax(0), score.logsumexp(0)


def some_plan(q, k) -> BlockPlan:
    return top_blocks(q, k, tile(LAYOUT, 3), 0.3)


# --------------------------------------------------------------------------------------------------------- the sample

@pytest.mark.parametrize("grid", [(1, 1, 1), (5, 4, 6), (21, 30, 52), (7, 3, 5), (2, 45, 80)])
@pytest.mark.parametrize("count", [1, 3, 20, 64, 257, 100_000])
def test_every_frame_has_its_share_and_no_row_comes_twice(grid, count):
    layout = arrange([("text", 5), ("video", grid), ("audio", 3)])
    rows = sample_rows(layout, count)
    frames, size = grid[0], grid[1] * grid[2]
    assert len(rows) == min(count, frames * size)
    assert (rows.diff() > 0).all()
    assert rows[0] >= 5 and rows[-1] < 5 + frames * size
    share = ((rows - 5) // size).bincount(minlength=frames)
    assert share.max() - share.min() <= 1
    assert torch.equal(rows, sample_rows(layout, count))


@pytest.mark.parametrize("count", [64, 256])
def test_rows_are_spread_over_the_frame_and_not_in_one_column(count):
    frames, height, width = 21, 30, 52
    rows = sample_rows(arrange([("video", (frames, height, width))]), count)
    place = rows % (height * width)
    for half in (place // width // (height // 2), place % width // (width // 2)):  # upper and lower, left and right
        assert half.bincount().min() > 0.42 * count
    assert len((place % width).unique()) > 0.6 * min(count, width)


def test_one_frame_in_the_middle_when_one_row_must_do():
    assert sample_rows(arrange([("video", (5, 1, 1))]), 1).tolist() == [2]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="1 row or more, not 0"):
        sample_rows(LAYOUT, 0)


# ---------------------------------------------------------------------------------------------------------- exact rows

@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("chunk_bytes", [SMALL, 1 << 20])
def test_exact_rows_are_those_of_float64(chunk_bytes, biased, scale):
    q, k, v = inputs()
    key_bias, rows = bias() if biased else None, sample_rows(LAYOUT, 10)
    out, lse = exact_rows(q, k, v, rows, scale=scale, key_bias=key_bias, chunk_bytes=chunk_bytes)
    assert out.shape == (B, 10, H, D) and lse.shape == (B, 10, H)
    by = 1.0 if scale is None else scale / D**-0.5
    for b in range(B):
        for h in range(H):
            for i, row in enumerate(rows.tolist()):
                weight, total = softmax(q * by, k, b, h, row, key_bias)
                assert torch.allclose(out[b, i, h].double(), weight @ v[b, :, h].double(), atol=2e-6)
                assert abs(lse[b, i, h] - total) < 1e-5


def test_half_precision_is_read_and_not_kept():
    q, k, v = (x.bfloat16() for x in inputs())
    out, lse = exact_rows(q, k, v, sample_rows(LAYOUT, 4))
    true, _ = exact_rows(*(x.float() for x in (q, k, v)), sample_rows(LAYOUT, 4))
    assert out.dtype == lse.dtype == torch.float32
    assert torch.equal(out, true)


def test_views_of_a_fused_projection():
    q, k, v = torch.stack(inputs(), 2).unbind(2)
    rows = sample_rows(LAYOUT, 7)
    contiguous = [x.contiguous() for x in (q, k, v)]
    assert torch.equal(exact_rows(q, k, v, rows)[0], exact_rows(*contiguous, rows)[0])
    lse = exact_rows(q, k, v, rows)[1]
    plan = some_plan(q, k)
    assert torch.equal(recall(plan, q, k, rows, lse), recall(plan, *contiguous[:2], rows, lse))


def test_a_row_without_a_key_is_zero_and_has_lost_nothing():
    q, k, v = inputs()
    key_bias = torch.zeros(B, N)
    key_bias[1] = -torch.inf
    rows = sample_rows(LAYOUT, 5)
    out, lse = exact_rows(q, k, v, rows, key_bias=key_bias)
    assert (out[1] == 0).all() and (lse[1] == -torch.inf).all() and out[0].isfinite().all()
    found = recall(some_plan(q, k), q, k, rows, lse, key_bias=key_bias)
    assert (found[1] == 1).all() and (found[0] < 1).all()


# --------------------------------------------------------------------------------------------------------------- error

def test_relative_l2_by_hand():
    exact = torch.tensor([[[[3.0, 0.0], [1.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]]])  # B 1, R 2, H 2, D 2
    found = exact.clone()
    found[0, 0, 0, 0] += 1.0
    found[0, 1, 1, 1] += 0.5
    assert relative_l2(found, exact).tolist() == [[pytest.approx(1 / 5), pytest.approx(0.5)]]
    assert relative_l2(found, exact, (1, 2, 3)).tolist() == [pytest.approx((1.25 / 26) ** 0.5)]
    assert relative_l2(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)).tolist() == [[0.0]]


# -------------------------------------------------------------------------------------------------------------- recall

@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("chunk_bytes", [SMALL, 1 << 20])
def test_recall_is_that_of_float64_loops(chunk_bytes, biased):
    q, k, v = inputs(1)
    key_bias, rows, plan = bias() if biased else None, sample_rows(LAYOUT, 12), some_plan(q, k)
    _, lse = exact_rows(q, k, v, rows, key_bias=key_bias)
    found = recall(plan, q, k, rows, lse, key_bias=key_bias, chunk_bytes=chunk_bytes)
    keep = kept_mask(plan)
    for b in range(B):
        for h in range(H):
            shares = []
            for row in rows.tolist():
                weight, _ = softmax(q, k, b, h, row, key_bias)
                block = int((plan.q_slots[0] == row).any(1).nonzero())
                kept = plan.k_slots[0][keep[b * H + h, block]]
                shares.append(weight[kept[kept >= 0].long()].sum())
            assert abs(found[b, h] - torch.stack(shares).mean()) < 1e-5


def test_everything_kept_is_everything_recalled():
    q, k, v = inputs()
    rows = sample_rows(LAYOUT, 9)
    lse = exact_rows(q, k, v, rows)[1]
    assert torch.allclose(recall(keep_all(tile(LAYOUT, 3)), q, k, rows, lse), torch.ones(B, H), atol=1e-5)


def test_equal_keys_give_the_share_of_tokens():
    q, _, v = inputs()
    k = torch.zeros(B, N, H, D)
    rows, plan = sample_rows(LAYOUT, 9), some_plan(*inputs()[:2])
    lse = exact_rows(q, k, v, rows)[1]
    block = [int((plan.q_slots[0] == row).any(1).nonzero()) for row in rows.tolist()]
    tokens = (kept_mask(plan).float() * plan.k_live).sum(-1)[:, block].mean(-1) / N
    assert torch.allclose(recall(plan, q, k, rows, lse).flatten(), tokens, atol=1e-5)


def test_mass_of_blocks_sums_to_one_and_full_rows_see_all():
    q, k, v = inputs()
    rows, plan = torch.arange(N), some_plan(q, k)
    lse = exact_rows(q, k, v, rows)[1]
    mass = mass_of_rows(q, k, rows, lse, plan.k_slots, chunk_bytes=SMALL)
    assert torch.allclose(mass.sum(-1), torch.ones(B * H, N), atol=1e-5)
    kept = kept_of_rows(plan, rows, B * H)
    text = torch.tensor([*range(9), *range(N - 11, N)])
    assert kept[:, text].all() and not kept[:, 9:-11].all(-1).any()


def test_a_geometry_of_its_own_for_every_head():
    """Each head's blocks are another order of the tokens; recall is the mass the kernel itself has seen."""
    q, k, v = inputs(2)
    draw = torch.Generator().manual_seed(3)
    orders = torch.stack([torch.randperm(N, generator=draw) for _ in range(B * H)])
    slots = torch.nn.functional.pad(orders, (0, -N % 16), value=-1).view(B * H, -1, 16).int()
    live = (slots >= 0).sum(-1).int()
    cols, counts = kept_lists(torch.rand(B * H, *[slots.shape[1]] * 2, generator=draw) < 0.4)
    plan = BlockPlan(slots, slots, live, live, cols, counts.clamp(min=1))
    rows = torch.arange(N)
    lse = exact_rows(q, k, v, rows)[1]
    _, seen = block_attend(q, k, v, plan, return_lse=True)
    assert torch.allclose(recall(plan, q, k, rows, lse), (seen - lse).exp().mean(1), atol=1e-5)
