"""What every sparse method must do, as checks that the tests of a method call, and calls on random tensors for them."""

from __future__ import annotations

import torch
from interspatial.kernels.block_plan import BlockPlan, check_plan, kept_mask
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.job import Job
from interspatial.models.attention.registry import Method
from interspatial.models.call import AttentionCall
from interspatial.models.forward import Branch, Forward
from interspatial.models.layout import TokenLayout, arrange
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from torch.nn.functional import scaled_dot_product_attention

MIXED = arrange([("text", 9), ("video", (5, 10, 13)), ("audio", 20)])
TILES, RUNS, CUBES = Blocks("tile", 4), Blocks("raster", 4), Blocks("cube", 3)
STEPS = 4


def new_run() -> Run:
    run = Run(Schedule([1 - i / STEPS for i in range(STEPS + 1)], lambda percent: 1.0 - percent), Report())
    run.begin_call(1.0)
    return run


def call_of(
    layout: TokenLayout,
    *,
    batch: int = 2,
    heads: int = 3,
    dim: int = 32,
    bias: torch.Tensor | None = None,
    layer: int = 0,
    run: Run | None = None,
    seed: int = 0,
) -> AttentionCall:
    """A call on normal noise, one branch a row of the batch. bias: [B, N], added to the logits"""
    run = new_run() if run is None else run
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, layout.tokens, heads, dim, generator=draw) for _ in "qkv")
    branches = tuple(Branch(f"prompt {i}", i, slice(i, i + 1)) for i in range(batch))
    forward = Forward(None, layout, batch, branches, run.position)
    mask = None if bias is None else bias[:, None, None]
    tally = run.report.tally("m", Card("sparse", "sparse"))

    def dense(q_, k_, v_, mask_, layout_):
        raise AssertionError("the call went to dense attention")

    return AttentionCall(q, k, v, mask, None, layout, layer, forward, run, "m", tally, dense)


def truth(call: AttentionCall) -> torch.Tensor:
    """Dense attention in float64, [B, N, H, D]."""
    q, k, v = (x.double().transpose(1, 2) for x in (call.q, call.k, call.v))
    mask = None if call.mask is None else call.mask.double()
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def video_part(plan: BlockPlan, job: Job) -> torch.Tensor:
    """Video blocks of keys that video blocks of queries keep: bool [1 or B * H, R, V]."""
    return kept_mask(plan)[:, asking(plan, job), slice(*job.order.video)]


def asking(plan: BlockPlan, job: Job) -> slice:
    """Query blocks of the video, by the first token of each."""
    token, video = plan.q_slots[0, :, 0], job.call.layout.video
    rows = ((token >= video.start) & (token < video.stop)).nonzero()[:, 0]
    return slice(int(rows[0]), int(rows[-1]) + 1)


def own_blocks(plan: BlockPlan, job: Job) -> torch.Tensor:
    """Which video blocks of keys hold a token of each video block of queries: bool [R, V], from lists of tokens."""
    keys = [{*block} - {-1} for block in job.order.slots[0, slice(*job.order.video)].tolist()]
    queries = plan.q_slots[0, asking(plan, job)].tolist()
    return torch.tensor([[bool({*block} & key) for key in keys] for block in queries])


def check_everything_kept_is_dense(method: Method) -> None:
    """At density 1, with a key bias, in the orders of boxes and runs."""
    bias = torch.zeros(2, MIXED.tokens)
    bias[0, 50:90], bias[1, ::3] = -torch.inf, -1.25
    for blocks in (TILES, RUNS):
        for call in (call_of(MIXED), call_of(MIXED, bias=bias)):
            out = method.attend(Job(call, blocks, "row", 1.0))
            torch.testing.assert_close(out.double(), truth(call), atol=1e-5, rtol=0)


def check_density(method: Method, density: float) -> None:
    """The stated density to one pair of blocks on a ragged grid; the plan is sound; the rest sees all and is seen."""
    for blocks in (TILES, RUNS, CUBES):
        job = Job(call_of(MIXED), blocks, "row", density)
        plan = method.plan(job)
        check_plan(plan, MIXED.tokens, MIXED.tokens)
        (first, last), keep = job.order.video, kept_mask(plan)
        rows = asking(plan, job)
        for other in (slice(0, first), slice(last, None)):
            assert keep[:, :, other].all()
        for other in (slice(0, rows.start), slice(rows.stop, None)):
            assert keep[:, other].all()
        part, own = video_part(plan, job), own_blocks(plan, job)
        assert (part.sum((1, 2)) == max(len(own), round(density * own.numel()))).all()
        assert part[:, own].all() or part[0].sum() < len(own) * own.sum(1).max()


def check_other_rows_are_exact(method: Method, density: float | None) -> None:
    """Queries that are not video see everything, without a tail too."""
    for tail in ("row", None):
        call = call_of(MIXED)
        out, want = method.attend(Job(call, TILES, tail, density)), truth(call)
        other = [*range(9), *range(MIXED.video.stop, MIXED.tokens)]
        torch.testing.assert_close(out[:, other].double(), want[:, other], atol=1e-5, rtol=0)
        assert (out[:, MIXED.video.start : MIXED.video.stop].double() - want[:, 9 : MIXED.video.stop]).norm() > 0.1


def check_branches_are_apart(method: Method, density: float | None) -> None:
    """Two prompts in one batch or one after the other: the same result."""
    both, alone = call_of(MIXED), call_of(MIXED)
    want = method.attend(Job(both, TILES, "row", density))
    for branch in alone.branches:
        out = method.attend(Job(alone.only(branch), TILES, "row", density))
        torch.testing.assert_close(out, want[branch.rows], atol=1e-5, rtol=0)


def check_through_the_sampler(method: Method) -> None:
    """Finite and not dense, on a model with odd sizes and two prompts, and on one with masked text among the tokens."""
    from interspatial.models import host
    from interspatial.models.attention.sparse import SparseAttention
    from interspatial.tests.models.tinies import BY_NAME, sample

    for name, cfg in (("wan_odd", 3.0), ("hunyuan_video_masked", 1.0)):
        tiny = BY_NAME[name]
        model, prompts = tiny.model(), (tiny.prompt(1, 5), tiny.prompt(2, 7))
        plain = sample(model, tiny, cfg=cfg, prompts=prompts)
        sparse = SparseAttention(method, blocks=Blocks("tile", 2))
        patched = host.attach_attention(model, Card("sparse", "sparse"), sparse)
        out = sample(patched, tiny, cfg=cfg, prompts=prompts)
        assert out.isfinite().all() and not torch.equal(out, plain)
        assert "kept" in host.report_of(patched)
