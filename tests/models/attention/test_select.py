"""Block top-k: the stated density, the best blocks, the forced ones, and what the attention makes of the plan."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan, kept_mask, kept_share
from interspatial.kernels.pool_blocks import pool_blocks
from interspatial.models.attention.orders import BlockOrder, cube, raster, tile
from interspatial.models.attention.pooled import Pooled
from interspatial.models.attention.select import keep_all, top_blocks
from interspatial.models.layout import arrange
from torch.nn.functional import scaled_dot_product_attention

pytestmark = pytest.mark.usefixtures("poisoned")

B, H, D = 2, 3, 32
PLAIN = arrange([("video", (5, 8, 8))])
MIXED = arrange([("text", 9), ("video", (3, 10, 13)), ("audio", 40)])
DENSITIES = (0.001, 0.1, 0.25, 0.3, 0.5, 0.77)


def inputs(layout, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(B, layout.tokens, H, D, generator=draw) for _ in "qkv"]


def scores(q, k, order: BlockOrder, bias=None):
    """Log softmax mass per token of every block pair, by loops in float64: [B * H, K, K], unnormalised."""
    blocks = [row[row >= 0].long() for row in order.slots[0]]
    out = torch.zeros(B * H, len(blocks), len(blocks), dtype=torch.float64)
    for g in range(B * H):
        b, h = divmod(g, H)
        for j, key in enumerate(blocks):
            weight = torch.ones(len(key)).double() if bias is None else bias[b, key].double().exp()
            mean = (weight[:, None] * k[b, key, h].double()).sum(0) / weight.sum().clamp(min=1e-300)
            for i, query in enumerate(blocks):
                logit = q[b, query, h].double().mean(0) @ mean * D**-0.5
                out[g, i, j] = logit + (weight.sum() / len(key)).log()
    return out


def video_part(plan: BlockPlan, order: BlockOrder) -> torch.Tensor:
    first, last = order.video
    return kept_mask(plan)[:, first:last, first:last]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("layout", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_every_head_has_the_stated_density(layout, density):
    q, k, _ = inputs(layout)
    for order in (raster(layout, 16), tile(layout, 4), cube(layout, 4)):
        part = video_part(top_blocks(q, k, order, density), order)
        blocks = part.shape[-1]
        want = max(blocks, round(density * blocks * blocks))
        assert (part.sum((1, 2)) == want).all()
        assert part.sum(2).max() - part.sum(2).min() <= 1  # no query block is starved for another


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_the_share_of_exact_pairs_is_the_density(density):
    """Blocks of equal size: nothing is rounded, so the share of token pairs is the number the user gave."""
    q, k, _ = inputs(PLAIN)
    assert math.isclose(kept_share(top_blocks(q, k, tile(PLAIN, 4), density)), density, rel_tol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("layout", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_the_best_blocks_are_kept(layout, density):
    q, k, _ = inputs(layout)
    bias = torch.zeros(B, layout.tokens)
    bias[0, 50:90], bias[1, 100:140] = -torch.inf, -2.0
    for key_bias in (None, bias):
        order = tile(layout, 4)
        (first, last), true = order.video, scores(q, k, order, key_bias)[:, :, slice(*order.video)]
        part = video_part(top_blocks(q, k, order, density, key_bias=key_bias), order)
        own = torch.eye(last - first, dtype=torch.bool)
        assert part[:, own].all()
        for g in range(B * H):
            for i in range(last - first):
                rank = true[g, first + i].masked_fill(own[i], -torch.inf)
                chosen = part[g, i] & ~own[i]
                if chosen.any():
                    assert rank[chosen].min() >= rank[~part[g, i]].max() - 1e-5


def test_the_rest_of_the_budget_goes_where_it_is_worth_most():
    q, k, _ = inputs(PLAIN)
    order = tile(PLAIN, 4)
    share = scores(q, k, order).softmax(-1)
    part = video_part(top_blocks(q, k, order, 0.28), order)  # 112 of 400 pairs: 5 each, 12 query blocks get a sixth
    count = part.sum(2)
    assert sorted(set(count.flatten().tolist())) == [5, 6]
    own = torch.eye(20, dtype=torch.bool)
    sixth = share.masked_fill(own, 2).topk(6, dim=-1).values[..., -1]
    for g in range(B * H):
        assert sixth[g][count[g] == 6].min() >= sixth[g][count[g] == 5].max() - 1e-7


@pytest.mark.parametrize("density", DENSITIES)
def test_what_is_not_video_is_kept_by_all_and_sees_all(density):
    q, k, _ = inputs(MIXED)
    order = tile(MIXED, 4)
    plan = top_blocks(q, k, order, density)
    keep = kept_mask(plan)
    first, last = order.video
    assert first > 0 and last < keep.shape[1]
    for side in (slice(0, first), slice(last, None)):
        assert keep[:, :, side].all() and keep[:, side].all()
    assert plan.full == ((0, first), (last, keep.shape[1]))
    assert not plan.sees_everything


def test_lists_ascend():
    q, k, _ = inputs(MIXED)
    order = tile(MIXED, 4)
    plan = top_blocks(q, k, order, 0.3)
    rows = plan.cols[:, slice(*order.video)].long()
    assert (rows[..., 1:] > rows[..., :-1]).all()


def test_a_block_that_the_bias_removes_is_not_chosen():
    q, k, _ = inputs(PLAIN)
    order = tile(PLAIN, 4)
    bias = torch.zeros(B, PLAIN.tokens)
    gone = order.slots[0, 7].long()
    bias[:, gone] = -torch.inf
    k[:, gone] *= 100  # it would win otherwise
    part = video_part(top_blocks(q, k, order, 0.5, key_bias=bias), order)
    others = torch.arange(20) != 7
    assert not part[:, others, 7].any()
    assert video_part(top_blocks(q, k, order, 0.5), order)[:, others, 7].float().mean() > 0.3


@pytest.mark.parametrize("density", [1.0, 0.999])
def test_full_density_is_dense_attention(density):
    q, k, v = inputs(MIXED)
    order = tile(MIXED, 8)
    plan = top_blocks(q, k, order, density)
    assert plan.sees_everything == keep_all(order).sees_everything is True
    want = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(block_attend(q, k, v, plan, tail="row"), want, atol=1e-5, rtol=0)


def test_more_density_or_a_tail_is_closer_to_dense():
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(B, 20, H, D, generator=draw)
    order = tile(PLAIN, 4)
    q, k, v = (torch.empty(B, PLAIN.tokens, H, D) for _ in "qkv")
    for x, noise in ((q, 0.3), (k, 0.3), (v, 1.0)):  # tokens of a tile resemble each other, as in video
        x[:, order.slots[0].long()] = 2 * base[:, :, None] + noise * torch.randn(B, 20, 16, H, D, generator=draw)
    dense = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def error(density, tail):
        plan = top_blocks(q, k, order, density)
        return float((block_attend(q, k, v, plan, tail=tail) - dense).norm() / dense.norm())

    assert error(0.1, None) > error(0.25, None) > error(0.5, None)
    for density in (0.1, 0.25):
        assert error(density, "row") < 0.5 * error(density, None)


def test_block_means_can_be_handed_on():
    """As the kernel would pool them itself, for all blocks, and without a copy."""
    q, k, _ = inputs(MIXED)
    order, bias = tile(MIXED, 4), torch.zeros(B, MIXED.tokens)
    bias[0, 50:90] = -torch.inf
    for jensen in (False, True):
        pooled = Pooled.of(q, k, order, key_bias=bias, jensen=jensen)
        key, log_mass = pool_blocks(k, order.slots, bias)
        assert torch.equal(pooled.means.key, key) and torch.equal(pooled.means.log_mass, log_mass)
        assert pooled.means.key.data_ptr() == pooled.key.data_ptr()


def test_chunks_of_heads_change_nothing():
    q, k, _ = inputs(MIXED)
    order = tile(MIXED, 4)
    want, got = (top_blocks(q, k, order, 0.3, map_bytes=size) for size in (1 << 30, 1))
    assert torch.equal(want.cols, got.cols) and torch.equal(want.counts, got.counts)


@pytest.mark.parametrize("density", [0.25, 0.28, 1.0])
def test_a_device_is_never_waited_for(density):
    """On the meta device every read of a value raises."""
    q, k, _ = (x.to("meta") for x in inputs(MIXED))
    plan = top_blocks(q, k, tile(MIXED, 4).to("meta"), density, key_bias=torch.zeros(B, MIXED.tokens, device="meta"))
    assert plan.cols.device.type == "meta"


@pytest.mark.parametrize("density", [0, -0.5, 1.5, math.nan])
def test_densities_out_of_range_are_refused(density):
    q, k, _ = inputs(PLAIN)
    with pytest.raises(ValueError, match="density above 0 and at most 1"):
        top_blocks(q, k, tile(PLAIN, 4), density)
