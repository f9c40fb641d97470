"""block_attend and its reference against a float64 loop, and the properties that a sparse softmax must have."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.kernels import kept_rows
from interspatial.kernels.block_attend import block_attend, block_attend_reference, why_not
from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask, kept_share
from interspatial.kernels.head_rows import head_rows
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.usefixtures("poisoned")

B, H, D = 2, 2, 64
LENGTHS = (1, 63, 64, 65, 129, 1000)  # one token, around one block, a short tail, many ragged blocks
TAILS = (None, "row", "block")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def cut(tokens: int, text: str, seed: int, size: int = 64) -> tuple[list[list[int]], list[int]]:
    """Blocks of random ragged sizes over a random order of the video tokens, and which blocks are text."""
    draw = torch.Generator().manual_seed(seed)
    count = 0 if text == "absent" else min(7, tokens - 1)
    first = 0 if text == "before" else tokens - count
    written = list(range(first, first + count))
    video = [t for t in range(tokens) if t not in set(written)]
    video = [video[i] for i in torch.randperm(len(video), generator=draw)]
    blocks = []
    while video:
        n = int(torch.randint(size // 2, size + 1, (), generator=draw))
        blocks.append(video[:n])
        video = video[n:]
    if not written:
        return blocks, []
    return ([written, *blocks], [0]) if text == "before" else ([*blocks, written], [len(blocks)])


def table(blocks: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    slots = torch.full((1, len(blocks), max(map(len, blocks))), -1, dtype=torch.int32)
    for i, block in enumerate(blocks):
        slots[0, i, : len(block)] = torch.tensor(block)
    return slots, torch.tensor([[len(block) for block in blocks]], dtype=torch.int32)


def plan_of(blocks: list[list[int]], keep: torch.Tensor, text: list[int]) -> BlockPlan:
    """keep: bool [1 or B * H, Q, K]; rows of text blocks are True."""
    slots, live = table(blocks)
    cols, counts = kept_lists(keep)
    counts[:, text] = -1  # not read
    return BlockPlan(slots, slots, live, live, cols, counts, tuple((i, i + 1) for i in text))


def keep_map(kind: str, blocks: int, text: list[int], seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    chance = {"none": 0.0, "some": 0.3, "all": 1.1}[kind]
    keep = torch.rand(B * H, blocks, blocks, generator=draw) < chance
    keep[:, text] = True
    return keep


def inputs(tokens: int, dim: int = D, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(B, tokens, H, dim, generator=draw).to(dtype) for _ in "qkv"]


def biased(tokens: int, blocks: list[list[int]]) -> torch.Tensor:
    """One block gone, some tokens gone, some weighed down; the batch entries differ."""
    bias = torch.zeros(B, tokens)
    bias[0, blocks[-1]] = -torch.inf
    bias[1, ::3] = -torch.inf
    bias[1, 1::3] = -1.25
    return bias


def naive(q, k, v, blocks, keep, tail=None, bias=None, scale=None):
    """Softmax in float64, one query block after the other, from lists of tokens."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = torch.zeros(k.shape[:2]) if bias is None else bias
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(q.shape[:3], dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            q1, k1, v1, w1 = q[b, :, h].double(), k[b, :, h].double(), v[b, :, h].double(), bias[b].double().exp()
            mass = torch.stack([w1[block].sum() for block in blocks])
            means = ((w1[block] / w1[block].sum()) @ torch.cat((k1, v1), 1)[block] for block in blocks)
            mean_k, mean_v = torch.stack([*means]).nan_to_num(0).chunk(2, 1)
            for i, rows in enumerate(blocks):
                kept = [t for j, block in enumerate(blocks) if keep[b * H + h, i, j] for t in block]
                score, value = (q1[rows] @ k1[kept].T * scale).exp() * w1[kept], v1[kept]
                if tail:
                    rest = [j for j in range(len(blocks)) if not keep[b * H + h, i, j]]
                    query = q1[rows] if tail == "row" else q1[rows].mean(0).expand(len(rows), -1)
                    score = torch.cat((score, (query @ mean_k[rest].T * scale).exp() * mass[rest]), 1)
                    value = torch.cat((value, mean_v[rest]))
                lse[b, rows, h] = score.sum(1).log()
                out[b, rows, h] = (score / score.sum(1, keepdim=True)).nan_to_num(0) @ value
    return out, lse


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest true value; infinities must agree."""
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite)
    if finite.any():
        error = (got.double() - want.double())[finite].abs().max() / want[finite].abs().max().clamp(min=1e-3)
        assert error < tolerance, f"relative error {error:.2e}"


CASES = [
    (tokens, text, kept, bias)
    for tokens in LENGTHS
    for text in ("absent", "before", "after")
    for kept in ("none", "some", "all")
    for bias in ("plain", "biased")
    if tokens < 1000 or kept == "some"
]


@pytest.mark.parametrize(("tokens", "text", "kept", "bias"), CASES)
def test_reference_and_gather_match_a_float64_loop(tokens, text, kept, bias):
    blocks, written = cut(tokens, text, seed=tokens)
    keep = keep_map(kept, len(blocks), written, seed=tokens)
    plan, bias = plan_of(blocks, keep, written), biased(tokens, blocks) if bias == "biased" else None
    q, k, v = inputs(tokens, dim=16)
    for tail in TAILS:
        want = naive(q, k, v, blocks, keep, tail, bias)
        for attend in (block_attend_reference, block_attend):
            got = attend(q, k, v, plan, key_bias=bias, tail=tail, return_lse=True)
            for x, y in zip(got, want, strict=True):
                assert_close(x, y, 1e-5)
        assert torch.equal(block_attend(q, k, v, plan, key_bias=bias, tail=tail), got[0])  # lse changes nothing


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_head_dims_and_dtypes(dim, dtype):
    blocks, written = cut(300, "before", seed=1)
    keep = keep_map("some", len(blocks), written)
    q, k, v = inputs(300, dim, dtype)
    bias = biased(300, blocks)
    for tail in TAILS:
        got = block_attend(q, k, v, plan_of(blocks, keep, written), key_bias=bias, tail=tail, return_lse=True)
        assert got[0].dtype == dtype and got[1].dtype == torch.float32
        for x, y in zip(got, naive(q, k, v, blocks, keep, tail, bias), strict=True):
            assert_close(x, y, TOLERANCE[dtype])


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("how", ["full", "lists"])
def test_keeping_everything_is_dense_attention(how, tail):
    blocks, written = cut(129, "after", seed=2)
    plan = plan_of(blocks, torch.ones(B * H, len(blocks), len(blocks), dtype=torch.bool), written)
    if how == "full":
        plan = BlockPlan(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, plan.cols, full=((0, len(blocks)),))
        assert plan.sees_everything
    q, k, v = inputs(129)
    bias = biased(129, blocks)
    mask = bias[:, None, None].expand(-1, -1, 129, -1)
    for key_bias, attn_mask in ((None, None), (bias, mask)):
        want = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=attn_mask, scale=0.1)
        got = block_attend(q, k, v, plan, key_bias=key_bias, tail=tail, scale=0.1)
        torch.testing.assert_close(got, want.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", ["none", "some"])
def test_row_tail_is_dense_when_keys_are_constant_inside_blocks(kept):
    blocks, written = cut(400, "before", seed=3)
    q, k, v = inputs(400)
    for block in blocks:
        k[:, block] = k[:, block[:1]]
    bias = biased(400, blocks)
    plan = plan_of(blocks, keep_map(kept, len(blocks), written), written)
    everything = torch.ones(B * H, len(blocks), len(blocks), dtype=torch.bool)
    for x, y in zip(
        block_attend(q, k, v, plan, key_bias=bias, tail="row", return_lse=True),
        naive(q, k, v, blocks, everything, bias=bias),
        strict=True,
    ):
        assert_close(x, y, 1e-5)


def test_block_tail_is_row_tail_when_queries_are_constant_inside_blocks():
    blocks, written = cut(400, "after", seed=4)
    q, k, v = inputs(400)
    for block in blocks:
        q[:, block] = q[:, block[:1]]
    plan = plan_of(blocks, keep_map("some", len(blocks), written), written)
    row, block = (block_attend(q, k, v, plan, tail=tail) for tail in ("row", "block"))
    torch.testing.assert_close(row, block, atol=1e-5, rtol=0)


def test_one_list_serves_all_heads_and_equal_lists_need_no_counts():
    blocks, _ = cut(333, "absent", seed=5)
    count = len(blocks)
    keep = torch.zeros(1, count, count, dtype=torch.bool)
    for i in range(count):
        keep[0, i, [i, (i + 2) % count]] = True
    slots, live = table(blocks)
    cols, _ = kept_lists(keep, width=2)
    plan = BlockPlan(slots, slots, live, live, cols)
    q, k, v = inputs(333)
    for tail in TAILS:
        want, _ = naive(q, k, v, blocks, keep.expand(B * H, -1, -1), tail)
        assert_close(block_attend(q, k, v, plan, tail=tail), want, 1e-5)


def test_every_head_may_have_its_own_geometry():
    cuts = [cut(200, "absent", seed=s, size=40)[0] for s in range(20)]
    cuts = [blocks for blocks in cuts if len(blocks) == len(cuts[0])][: B * H]
    width = max(len(block) for blocks in cuts for block in blocks)
    tables = [table(blocks) for blocks in cuts]
    slots = torch.cat([torch.nn.functional.pad(s, (0, width - s.shape[2]), value=-1) for s, _ in tables])
    live = torch.cat([n for _, n in tables])
    keep = keep_map("some", len(cuts[0]), [])
    keep[:, 0] = True
    cols, counts = kept_lists(keep)
    plan = BlockPlan(slots, slots, live, live, cols, counts, ((0, 1),))
    q, k, v = inputs(200)
    bias = biased(200, cuts[0])
    for tail in TAILS:
        got = block_attend(q, k, v, plan, key_bias=bias, tail=tail, return_lse=True)
        reference = block_attend_reference(q, k, v, plan, key_bias=bias, tail=tail, return_lse=True)
        for g, blocks in enumerate(cuts):
            b, h = divmod(g, H)
            want = naive(q, k, v, blocks, keep, tail, bias)
            for x, y in zip((*got, *reference), (*want, *want), strict=True):
                assert_close(x[b, :, h], y[b, :, h], 1e-5)


def test_queries_may_be_fewer_than_keys():
    blocks, _ = cut(150, "absent", seed=6)
    keep = keep_map("some", len(blocks), [])
    q, k, v = inputs(150)
    here = torch.tensor(blocks[1])
    slots, live = table(blocks)
    cols, counts = kept_lists(keep[:, 1:2])
    own = torch.arange(len(here), dtype=torch.int32)[None, None]
    plan = BlockPlan(own, slots, live[:, 1:2], live, cols, counts)
    want, _ = naive(q, k, v, blocks, keep, "row")
    for attend in (block_attend, block_attend_reference):
        assert_close(attend(q[:, here], k, v, plan, tail="row"), want[:, here], 1e-5)


def test_entries_past_the_count_are_ignored():
    blocks, _ = cut(500, "absent", seed=7)
    plan = plan_of(blocks, keep_map("some", len(blocks), []), [])
    q, k, v = inputs(500)
    past = torch.arange(plan.cols.shape[2]) >= plan.counts[..., None]
    for tail in TAILS:
        want = block_attend(q, k, v, plan, tail=tail)
        for junk in (-1, 0, 2**31 - 1):
            cols = plan.cols.masked_fill(past, junk)
            other = BlockPlan(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, cols, plan.counts)
            assert torch.equal(block_attend(q, k, v, other, tail=tail), want)


def test_rows_that_see_nothing_are_zero():
    blocks, written = cut(129, "before", seed=8)
    q, k, v = inputs(129)
    bias = torch.zeros(B, 129)
    bias[1] = -torch.inf
    for dtype in TOLERANCE:
        for kept in ("none", "some", "all"):
            plan = plan_of(blocks, keep_map(kept, len(blocks), written), written)
            for tail in TAILS:
                out, lse = block_attend(
                    *(x.to(dtype) for x in (q, k, v)), plan, key_bias=bias, tail=tail, return_lse=True
                )
                assert (out[1] == 0).all() and (lse[1] == -torch.inf).all()
                assert out[0].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_common_bias_changes_only_the_lse(dtype):
    blocks, written = cut(129, "before", seed=9)
    plan = plan_of(blocks, keep_map("some", len(blocks), written), written)
    q, k, v = inputs(129, dtype=dtype)
    for tail in TAILS:
        want, base = block_attend(q, k, v, plan, tail=tail, return_lse=True)
        for shift in (-300.0, 300.0):
            out, lse = block_attend(q, k, v, plan, tail=tail, key_bias=torch.full((B, 129), shift), return_lse=True)
            assert_close(out, want, TOLERANCE[dtype] + 1e-4)  # fp32 numbers near 300 are 3e-5 apart
            assert_close(lse, base + shift, 1e-5)
        for shift in (-1e30, -1e9, 1e9):
            assert block_attend(q, k, v, plan, tail=tail, key_bias=torch.full((B, 129), shift)).isfinite().all()


def test_finite_masks_of_other_code_bases_work():
    blocks, written = cut(129, "before", seed=10)
    plan = plan_of(blocks, keep_map("some", len(blocks), written), written)
    for dtype in TOLERANCE:
        q, k, v = inputs(129, dtype=dtype)
        for low in (-1e9, torch.finfo(dtype).min):
            gone, masked = torch.zeros(B, 129), torch.zeros(B, 129)
            gone[:, blocks[1]], masked[:, blocks[1]] = -torch.inf, low
            for tail in TAILS:
                want, got = (block_attend(q, k, v, plan, key_bias=x, tail=tail) for x in (gone, masked))
                alive = kept_mask(plan)[..., [j for j in range(len(blocks)) if j != 1]].any(-1).all(0)
                rows = [t for i, block in enumerate(blocks) if alive[i] for t in block]
                assert got.isfinite().all()
                torch.testing.assert_close(got[:, rows], want[:, rows], atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("tail", TAILS)
def test_workspace_bound_changes_memory_not_results(tail, monkeypatch):
    blocks, written = cut(1000, "after", seed=11)
    keep = keep_map("some", len(blocks), written)
    plan = plan_of(blocks, keep, written)
    q, k, v = inputs(1000)
    want = block_attend(q, k, v, plan, tail=tail, return_lse=True)
    seen = []

    def watch(q, k, v, attn_mask, scale):
        seen.append((len(q), k.nbytes + v.nbytes))
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(kept_rows, "scaled_dot_product_attention", watch)
    for max_bytes in (1, 1 << 21, 1 << 30):
        seen.clear()
        got = block_attend(q, k, v, plan, tail=tail, return_lse=True, max_bytes=max_bytes)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)
        assert all(rows == 1 or size <= max_bytes // 2 for rows, size in seen)
        assert sum(rows for rows, _ in seen) == B * H * (len(blocks) - 1) - (tail is None) * (keep.sum(-1) == 0).sum()
        assert max_bytes > 1 or all(rows == 1 for rows, _ in seen)


@pytest.mark.parametrize("tail", TAILS)
def test_peak_memory_stays_near_the_bound(tail):
    """What the allocator hands out beyond the output and the block means."""
    tokens, max_bytes = 512, 1 << 20
    slots = torch.arange(tokens, dtype=torch.int32).view(1, -1, 32)
    live = torch.full((1, 16), 32)
    cols = torch.rand(B * H, 16, 16, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :12].sort(-1).values
    plan = BlockPlan(slots, slots, live, live, cols.int())
    q, k, v = inputs(tokens)

    def peak(max_bytes: int) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
            block_attend(q, k, v, plan, tail=tail, max_bytes=max_bytes)
        held = sorted((event.time_range.start, event.self_cpu_memory_usage) for event in watched.events())
        return int(torch.tensor([size for _, size in held]).cumsum(0).max())

    given = q.nbytes + (4 * q.nbytes // 32 if tail else 0)  # output and block means
    assert given < peak(max_bytes) < given + 1.25 * max_bytes
    assert peak(16 * max_bytes) > peak(max_bytes) + max_bytes  # it is the bound that holds it


@pytest.mark.parametrize("stored", ["B H N D", "fused", "wide rows"])
def test_strides_are_read_in_place(stored):
    blocks, written = cut(200, "before", seed=12)
    plan = plan_of(blocks, keep_map("some", len(blocks), written), written)
    q, k, v = inputs(200)
    want = block_attend(q, k, v, plan, tail="row")
    if stored == "B H N D":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    elif stored == "fused":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    else:  # rows of D + 1 numbers: not a table of rows, so this one is copied
        k = torch.cat((k, k[..., :1]), -1)[..., :-1]
    assert (head_rows(k).table.data_ptr() == k.data_ptr()) == (stored != "wide rows")
    assert torch.equal(block_attend(q, k, v, plan, tail="row"), want)


@pytest.mark.parametrize("tail", TAILS)
def test_a_device_is_never_waited_for(tail):
    """On the meta device every read of a value raises."""
    blocks, written = cut(300, "before", seed=13)
    plan = plan_of(blocks, keep_map("some", len(blocks), written), written)
    tables = (getattr(plan, name).to("meta") for name in ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts"))
    there = BlockPlan(*tables, plan.full)
    q, k, v = (x.to("meta") for x in inputs(300))
    bias = torch.zeros(B, 300, device="meta")
    out, lse = block_attend(q, k, v, there, key_bias=bias, tail=tail, return_lse=True, max_bytes=1 << 22)
    assert out.shape == q.shape and lse.shape == q.shape[:3] and out.device.type == "meta"


def test_refusals_name_what_came():
    blocks, _ = cut(129, "absent", seed=14)
    plan = plan_of(blocks, keep_map("some", len(blocks), []), [])
    q, k, v = inputs(129)
    assert why_not(q, k, v, plan, key_bias=torch.zeros(B, 129), tail="row") is None
    longer = inputs(2000)
    cases = [
        (why_not(q, k, v.half(), plan), "float16"),
        (why_not(q.double(), k.double(), v.double(), plan), "float64"),
        (why_not(q, k[:, :, :1], v[:, :, :1], plan), "[2, 129, 1, 64]"),
        (why_not(q, k.to("meta"), v, plan), "meta"),
        (why_not(*(x[:1] for x in (q, k, v)), plan), "serve 4 heads; the call has 2"),
        (why_not(*longer, plan), "slots for 2000 tokens"),
        (why_not(q, k, v, plan, key_bias=torch.zeros(129)), "[129]"),
        (why_not(q, k, v, plan, tail="rows"), "'rows'"),
        (why_not(q.clone().requires_grad_(), k, v, plan), "gradients"),
    ]
    for reason, word in cases:
        assert word in reason
    with pytest.raises(ValueError, match="cannot take this call: the tail is 'rows'"):
        block_attend(q, k, v, plan, tail="rows")


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
    short, capped = kept_lists(keep, width=2)
    assert short.shape == (3, 9, 2) and torch.equal(capped, counts.clamp(max=2))


def test_kept_share_counts_tokens():
    blocks, written = cut(500, "before", seed=15)
    keep = keep_map("some", len(blocks), written)
    sizes = torch.tensor([len(block) for block in blocks]).double()
    want = (keep.double() * sizes[:, None] * sizes).sum() / (B * H * 500 * 500)
    assert math.isclose(kept_share(plan_of(blocks, keep, written)), want, rel_tol=1e-5)
