"""Search in exact softmax mass: the best blocks by float64, budgets by head, bits that give the lists again."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.block_plan import check_plan, kept_mask
from interspatial.models.attention.job import Job
from interspatial.models.attention.orders import BlockOrder
from interspatial.models.attention.search import FrozenBlocks, Quota, dense_with_lse, search
from interspatial.tests.models.attention.contract import CUBES, MIXED, RUNS, TILES, call_of, truth, video_part

pytestmark = pytest.mark.usefixtures("poisoned")

B, H = 2, 3


def found(job: Job, **options) -> torch.Tensor:
    """The video blocks that a search keeps, after a sound plan was made of them: bool [B * H, V, V]."""
    _, lse = dense_with_lse(job)
    plan = search(job, lse, **options).plan(job.order)
    check_plan(plan, MIXED.tokens, MIXED.tokens)
    (first, last), keep = job.order.video, kept_mask(plan)
    for other in (slice(0, first), slice(last, None)):
        assert keep[:, :, other].all() and keep[:, other].all()
    return video_part(plan, job)


def true_mass(call, order: BlockOrder, bias=None) -> torch.Tensor:
    """Softmax mass of every block pair in float64: [B * H, K, K]."""
    member = (order.slots[0, :, :, None] == torch.arange(MIXED.tokens)).any(1).double()  # K N
    mass = []
    for g in range(B * H):
        b, h = divmod(g, H)
        score = call.q[b, :, h].double() @ call.k[b, :, h].double().T * call.q.shape[-1] ** -0.5
        mass.append(member @ (score if bias is None else score + bias[b].double()).softmax(-1) @ member.T)
    return torch.stack(mass)


def holes() -> torch.Tensor:
    bias = torch.zeros(B, MIXED.tokens)
    bias[0, 50:300], bias[1, ::3] = -torch.inf, -1.25
    return bias


@pytest.mark.parametrize(("density", "biased"), [(0.02, False), (0.1, True), (0.33, False)])
def test_every_query_block_keeps_what_it_looks_at_most(density, biased):
    bias = holes() if biased else None
    for blocks in (TILES, CUBES):
        job = Job(call_of(MIXED, bias=bias), blocks, "row", density)
        part, video = found(job, by_head=False), slice(*job.order.video)
        mass = true_mass(job.call, job.order, bias)[:, video, video]
        count = mass.shape[1]
        own = torch.eye(count, dtype=torch.bool)
        assert (part.sum((1, 2)) == max(count, round(density * count * count))).all()
        assert part.sum(2).max() - part.sum(2).min() <= 1
        assert part[:, own].all()
        for g in range(B * H):
            for i in range(count):
                rest = part[g, i] & ~own[i]
                if rest.any():
                    assert mass[g, i, rest].min() >= mass[g, i, ~part[g, i]].max() - 1e-4


def test_the_rest_of_the_budget_goes_where_it_is_worth_most():
    job = Job(call_of(MIXED), TILES, "row", 0.11)
    part, video = found(job, by_head=False), slice(*job.order.video)
    mass = true_mass(job.call, job.order)
    share = (mass / mass.sum(-1, keepdim=True))[:, video, video]
    each = part.sum(2)
    fewest = int(each.min())
    assert int(each.max()) == fewest + 1
    own = torch.eye(part.shape[1], dtype=torch.bool)
    worth = share.masked_fill(own, 2).topk(fewest + 1, dim=-1).values[..., -1]
    for g in range(B * H):
        assert worth[g][each[g] > fewest].min() >= worth[g][each[g] == fewest].max() - 1e-6


def test_sparsities_of_the_paper():
    """At sparsity s: (1 + s) / 2 for those that give, (3 s - 1) / 2 for those that take; at s below 1/3 nobody does."""
    assert Quota.of(0.2, (3, 103), True).totals == (1000, 2000, 3000)
    assert Quota.of(0.2, (3, 103), False).totals == (2000, 2000, 2000)
    assert Quota.of(2 / 3, (0, 99), True).totals == (3267, 6534, 9801)
    assert Quota.of(0.7, (0, 99), True).totals == (6861, 6861, 6861)
    assert Quota.of(0.001, (0, 99), True).totals == (99, 99, 99)  # a block for each query block
    with pytest.raises(ValueError, match="density above 0 and at most 1"):
        Quota.of(0.0, (0, 99), True)


@pytest.mark.parametrize(
    ("recall", "share"),
    [
        ([0.9, 0.5, 0.3, 0.85, 0.6, 0.4], [1, 2, 3, 1, 2, 3]),  # two above 0.8: the two lowest get theirs
        ([0.9, 0.81, 0.3, 0.85, 0.95, 0.99], [1, 3, 3, 3, 1, 1]),  # no more than a half gives
        ([0.9, 0.95, 0.99], [3, 2, 1]),
        ([0.8, 0.5, 0.3], [2, 2, 2]),
        ([0.9], [2]),
    ],
)
def test_heads_above_the_mark_give_to_the_lowest(recall, share):
    quota = Quota.of(0.2, (0, 100), True)
    heads = len(recall)
    recall = torch.tensor([recall, [0.1] * heads])  # a second clip, which gives nothing away
    counts = quota.counts(recall, torch.zeros(2 * heads, 100, 3)).sum(-1)
    assert counts.tolist() == [1000 * n for n in share] + [2000] * heads


def test_budgets_follow_the_recall_of_each_clip():
    """A head whose queries find their own place keeps nearly all of its mass, random ones keep a little."""
    call = call_of(MIXED)
    call.q[1, :, 2] = call.k[1, :, 2] = 3 * call.k[1, :, 2]
    job = Job(call, TILES, "row", 0.2)
    part = found(job)
    usual = round(0.2 * part.shape[1] ** 2)
    totals = part.sum((1, 2)).view(B, H)
    assert totals[0].tolist() == [usual] * 3
    assert int(totals[1, 2]) == usual // 2
    assert sorted(totals[1, :2].tolist()) == [usual, 2 * usual - usual // 2]
    assert int(totals[1].sum()) == 3 * usual
    assert part[:, torch.eye(part.shape[1], dtype=torch.bool)].all()


def test_an_old_lse_ranks_alike():
    """Off by a factor for each row: neither the blocks nor the recall may depend on it."""
    call = call_of(MIXED)
    call.q[1, :, 2] = call.k[1, :, 2] = 3 * call.k[1, :, 2]
    job = Job(call, TILES, "row", 0.2)
    _, lse = dense_with_lse(job)
    stale = lse + torch.randn(B, 1, H, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.equal(search(job, stale).bits, search(job, lse).bits)


def test_chunks_of_heads_change_nothing():
    job = Job(call_of(MIXED, bias=holes()), RUNS, "row", 0.3)
    _, lse = dense_with_lse(job)
    want, got = (search(job, lse, map_bytes=size) for size in (1 << 30, 1))
    assert torch.equal(want.bits, got.bits) and want.width == got.width
    want, got = (want.plan(job.order, map_bytes=size) for size in (1 << 30, 1))
    assert torch.equal(kept_mask(want), kept_mask(got))


@pytest.mark.parametrize("blocks", [1, 7, 8, 30])
def test_bits_are_the_map(blocks):
    draw = torch.Generator().manual_seed(0)
    keep = torch.rand(5, blocks, blocks, generator=draw) < 0.4
    frozen = FrozenBlocks.packed(keep, blocks)
    assert frozen.bits.shape == (5, blocks, -(-blocks // 8)) and frozen.bits.dtype == torch.uint8
    assert torch.equal(frozen.keep(slice(None)), keep) and torch.equal(frozen.keep(slice(1, 3)), keep[1:3])
    halves = FrozenBlocks(frozen.bits[:2], 3), FrozenBlocks(frozen.bits[2:], 4)
    joined = FrozenBlocks.joined(halves)
    assert torch.equal(joined.bits, frozen.bits) and joined.width == 4
    assert torch.equal(FrozenBlocks(frozen.bits[:4], 3).of(slice(1, 2), 2).bits, frozen.bits[2:4])


def test_dense_with_lse_is_dense_and_counts_so():
    bias = holes()
    job = Job(call_of(MIXED, bias=bias), TILES, "row", 0.2)
    out, lse = dense_with_lse(job)
    torch.testing.assert_close(out.double(), truth(job.call), atol=1e-5, rtol=0)
    score = torch.einsum("bnhd,bmhd->bnhm", job.call.q.double(), job.call.k.double()) * 32**-0.5
    want = (score + bias[:, None, None].double()).logsumexp(-1)
    torch.testing.assert_close(lse.double(), want, atol=1e-5, rtol=0)
    assert job.used is None


def test_a_device_is_never_waited_for():
    """On the meta device every read of a value raises."""
    job = Job(call_of(MIXED), TILES, "row", 0.2)
    order = job.order.to("meta")
    call = call_of(MIXED)
    for name in "qkv":
        object.__setattr__(call, name, getattr(call, name).to("meta"))
    job = Job(call, TILES, "row", 0.2)
    job.order = order
    plan = search(job, torch.zeros(B, MIXED.tokens, H, device="meta")).plan(order)
    assert plan.cols.device.type == "meta"
