"""Re-ttention: what is put back is what is missing, when it is measured anew, and what every method must do."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import check_plan, kept_mask
from interspatial.models.attention import rettention
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.job import Job
from interspatial.models.attention.parked import RAM
from interspatial.models.attention.rettention import Measured, Rettention
from interspatial.models.layout import arrange
from interspatial.models.report import Card
from interspatial.tests.models.attention.contract import (
    CUBES,
    MIXED,
    RUNS,
    TILES,
    call_of,
    check_everything_kept_is_dense,
    truth,
    video_part,
)
from interspatial.tests.models.attention.test_adaspa import SMALL, Stage, is_dense
from interspatial.tests.models.attention.test_search import holes

pytestmark = pytest.mark.usefixtures("poisoned")

each_mask = pytest.mark.parametrize("mask", rettention.MASKS)
VIDEO = torch.zeros(MIXED.tokens, dtype=torch.bool)
VIDEO[MIXED.video.start : MIXED.video.stop] = True


def state(call, branch: int = 0) -> Measured:
    return call.state(call.branches[branch], Measured)


def test_everything_kept_is_dense():
    check_everything_kept_is_dense(Rettention())


def test_the_identity_in_float64():
    """rho O_sparse + R with rho from two log-sum-exps is dense attention, and R what the dropped keys contribute."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(40, 16, generator=draw, dtype=torch.float64) for _ in "qkv")
    keep = torch.rand(40, 40, generator=draw) < 0.3
    keep[:, 0] = True
    score = q @ k.T / 4
    some = score.masked_fill(~keep, -torch.inf)
    rho = (some.logsumexp(-1) - score.logsumexp(-1)).exp()
    dense, sparse = score.softmax(-1) @ v, some.softmax(-1) @ v
    missing = dense - rho[:, None] * sparse
    dropped = score.softmax(-1).masked_fill(keep, 0) @ v
    assert (missing - dropped).abs().max() < 1e-15
    assert (rho - score.softmax(-1).masked_fill(~keep, 0).sum(-1)).abs().max() < 1e-15


@each_mask
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_the_same_call_again_is_dense(mask, biased):
    """And the tail that the user asked for plays no part: both put back the same mass."""
    bias = holes() if biased else None
    for blocks, method in ((TILES, Rettention(mask=mask)), (RUNS, Rettention(mask=mask, residual="per token"))):
        stage = Stage()
        for step in (0, 1):
            job = Job(stage.call(step, bias=bias), blocks, "row", 0.2)
            assert is_dense(method.attend(job), job.call)
            assert (job.used is None) is (step == 0)


@each_mask
def test_what_a_refresh_remembers(mask):
    stage, method = Stage(), Rettention(mask=mask, residual="per token")
    job = Job(stage.call(0, bias=holes()), TILES, None, 0.2)
    method.attend(job)
    call = job.call
    again = Job(stage.call(1, bias=holes()), TILES, None, 0.2)
    method.attend(again)
    member = (job.order.slots[0, :, :, None] == torch.arange(MIXED.tokens)).any(1).double()
    kept = kept_mask(again.used).double().expand(6, -1, -1)
    for g in range(6):
        b, h = divmod(g, 3)
        score = call.q[b, :, h].double() @ call.k[b, :, h].double().T * 32**-0.5 + holes()[b].double()
        seen = member.T @ kept[g] @ member > 0
        share = score.softmax(-1)
        known = state(again.call, b)
        torch.testing.assert_close(known.rho[0, :, h].double(), share.masked_fill(~seen, 0).sum(-1), atol=1e-3, rtol=0)
        lost = share.masked_fill(seen, 0) @ call.v[b, :, h].double()
        torch.testing.assert_close(known.residual.get(RAM)[0, :, h].double(), lost, atol=2e-3, rtol=0)
        assert (known.rho[0, ~VIDEO, h] == 1).all() and not known.residual.get(RAM)[0, ~VIDEO, h].any()


@pytest.mark.parametrize("age", [0, 1, 3])
def test_the_formula_on_other_tensors(age):
    stage, method = Stage(), Rettention(growth=0.03, residual="per token")
    method.attend(Job(stage.call(0), TILES, None, 0.2))
    job = Job(stage.call(age + 1, seed=1), TILES, None, 0.2)
    out = method.attend(job)
    sparse = block_attend(job.call.q, job.call.k, job.call.v, job.used)
    for b in (0, 1):
        known = state(job.call, b)
        rho = (known.rho.float() + 0.03 * age).clamp(max=1)
        want = rho[..., None] * sparse[b : b + 1] + known.residual.get(RAM)
        torch.testing.assert_close(out[b : b + 1], want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[:, ~VIDEO].double(), truth(job.call)[:, ~VIDEO], atol=1e-5, rtol=0)
    assert (out[:, VIDEO] - truth(job.call)[:, VIDEO]).norm() > 0.1


def test_a_mean_over_blocks_is_enough_where_their_rows_are_alike():
    stage, method = Stage(), Rettention(residual="per block")
    for step in (0, 1):
        job = Job(stage.call(step), TILES, None, 0.2)
        for block in job.order.slots[0]:
            live = block[block >= 0].long()
            job.call.q[:, live] = job.call.q[:, live[:1]]
        assert is_dense(method.attend(job), job.call)
    assert state(job.call).residual.get(RAM).shape == (1, job.order.slots.shape[1], 3, 32)


def test_off_only_scales():
    stage, method = Stage(), Rettention(residual="off", growth=0)
    for step in (0, 1):
        job = Job(stage.call(step), TILES, None, 0.2)
        out = method.attend(job)
    rho = torch.cat([state(job.call, b).rho.float() for b in (0, 1)])
    sparse = block_attend(job.call.q, job.call.k, job.call.v, job.used)
    torch.testing.assert_close(out, rho[..., None] * sparse, atol=1e-6, rtol=1e-5)


def test_half_precision_waits_in_eight_bits():
    stage, method = Stage(), Rettention()
    for step in (0, 1):
        call = stage.call(step)
        call = replace(call, **{name: getattr(call, name).bfloat16() for name in "qkv"})
        out = method.attend(Job(call, TILES, None, 0.2))
    assert out.dtype == torch.bfloat16
    want = truth(call)
    assert (out.double() - want).abs().max() < 0.01 * want.abs().max()


@pytest.mark.parametrize("density", [0.02, 0.15, 0.33, 0.6])
def test_the_density_of_the_window(density):
    for blocks in (TILES, RUNS, CUBES):
        stage, method = Stage(), Rettention(mask="window")
        for step in (0, 1):
            job = Job(stage.call(step), blocks, None, density)
            method.attend(job)
        check_plan(job.used, MIXED.tokens, MIXED.tokens)
        part = video_part(job.used, job)
        assert part.shape[0] == 1 and (part.sum(2) == max(1, round(density * part.shape[1]))).all()
        assert part[:, torch.eye(part.shape[1], dtype=torch.bool)].all()


def test_the_window_is_the_same_places_in_all_frames():
    layout = arrange([("video", (4, 12, 20))])
    stage, method = Stage(20, layout), Rettention(mask="window")
    for step in (0, 1):
        job = Job(stage.call(step, batch=1, heads=1), Blocks("tile", 4), None, 9 / 15)
        method.attend(job)
    keep = kept_mask(job.used)[0].view(4, 3, 5, 4, 3, 5)  # frame, tile row, tile column, twice
    assert (keep.flatten(3).sum(-1) == 36).all()
    near = torch.zeros(3, 5, dtype=torch.bool)
    near[:, 1:4] = True
    assert torch.equal(keep[:, 1, 2], near.expand(4, 4, 3, 5)), "the middle tile: every tile that touches it"


def refreshes(method: Rettention, stage: Stage, steps, monkeypatch, density=lambda step: 0.3) -> list[int]:
    found, real = [], rettention.dense_with_lse

    def noted(job):
        found.append(stage.run.step)
        return real(job)

    monkeypatch.setattr(rettention, "dense_with_lse", noted)
    for step in steps:
        method.attend(Job(stage.call(step, batch=1, heads=1), TILES, None, density(step)))
    return found


def test_every_fifth_step_is_dense(monkeypatch):
    """CogVideoX with 50 steps of which 15 come before: 15, 20, ... 45."""
    assert refreshes(Rettention(), Stage(50, SMALL), range(15, 50), monkeypatch) == [15, 20, 25, 30, 35, 40, 45]


def test_steps_that_were_left_out_are_not_counted(monkeypatch):
    """A cache that skips model calls in between."""
    assert refreshes(Rettention(), Stage(50, SMALL), [3, 4, 8, 9, 14], monkeypatch) == [3, 8, 14]


def test_a_restart_begins_anew(monkeypatch):
    assert refreshes(Rettention(), Stage(50, SMALL), [0, 1, 2, 3, 1, 2, 6], monkeypatch) == [0, 1, 6]


def test_a_ramp_waits_for_the_next_refresh(monkeypatch):
    stage, shares = Stage(20, SMALL), []
    real = Job.run

    def noted(job, plan, **options):
        shares.append(kept_mask(plan)[:, 1:, 1:].float().mean().item())
        return real(job, plan, **options)

    monkeypatch.setattr(Job, "run", noted)
    found = refreshes(Rettention(), stage, range(7), monkeypatch, lambda step: 0.8 - 0.1 * step)
    assert found == [0, 5]
    assert len(set(shares[1:6])) == 1 and shares[6] == 1  # dense and sparse, four times the same mask, dense
    assert shares[7] == shares[8] < shares[1] - 0.3


def test_the_second_call_of_a_refresh_goes_by_it():
    stage, method = Stage(20, SMALL, sampler="sample_heun"), Rettention(growth=0.03)
    for call_in_step in (0, 1):
        stage.run.begin_call(1.0 - 0.05 * call_in_step)
        job = Job(call_of(SMALL, run=stage.run), TILES, None, 0.3)
        assert is_dense(method.attend(job), job.call)  # the tensors are the same
        assert (job.used is None) is (call_in_step == 0)


@each_mask
def test_prompts_in_one_batch_or_one_after_the_other(mask):
    together, apart = Stage(), Stage()
    method = Rettention(mask=mask)
    for step in (0, 1, 3, 5, 6):
        call = together.call(step, seed=step)
        want = method.attend(Job(call, TILES, "row", 0.2))
        call = apart.call(step, seed=step)
        for branch in call.branches:
            out = method.attend(Job(call.only(branch), TILES, "row", 0.2))
            torch.testing.assert_close(out, want[branch.rows], atol=1e-5, rtol=0)


def test_a_prompt_that_joins_later_gets_its_own_refresh():
    stage, method = Stage(), Rettention()
    call = stage.call(0)
    method.attend(Job(call.only(call.branches[0]), TILES, None, 0.2))
    job = Job(stage.call(1, seed=1), TILES, None, 0.2)
    out, want = method.attend(job), truth(job.call)
    assert (out[0] - want[0]).norm() > 0.1
    torch.testing.assert_close(out[1].double(), want[1], atol=1e-5, rtol=0)
    job = Job(stage.call(2, seed=1), TILES, None, 0.2)
    out = method.attend(job)  # together, with the age of each
    torch.testing.assert_close(out[1].double(), want[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("residual", "room", "per_token", "place"),
    [
        ("auto", {"gpu": 1e9, "ram": 1e9}, True, "gpu"),
        ("auto", {"gpu": 0, "ram": 1e9}, True, "ram"),
        ("auto", {"gpu": 3e6, "ram": 0}, False, "gpu"),
        ("auto", {"gpu": 0, "ram": 0}, False, "ram"),
        ("per token", {"gpu": 0, "ram": 0}, True, "ram"),
        ("per block", {"gpu": 1e9, "ram": 1e9}, False, "gpu"),
    ],
)
def test_where_and_how_residuals_are_kept(residual, room, per_token, place, monkeypatch):
    """13 MB for a layer and two prompts, and 20 layers."""
    job = Job(Stage().call(0, batch=1), RUNS, None, 0.2)
    device = job.order and SimpleNamespace(type="gpu")  # the order is built on the real one
    q = SimpleNamespace(shape=(1, 679, 3, 32), dtype=torch.float32, device=device)
    forward = replace(job.call.forward, stacks={"blocks": 20})
    fake = replace(job.call, q=q, forward=forward)
    monkeypatch.setattr(
        rettention, "waiting_place",
        lambda where, total, at: next((p for p, n in ((at, room["gpu"]), (RAM, room["ram"])) if total <= n), None),
    )  # fmt: skip
    object.__setattr__(job, "call", fake)
    keeping = Rettention(residual=residual)._keeping(job)
    assert keeping.per_token is per_token and keeping.place == {"gpu": device, "ram": RAM}[place]
    said = fake.tally.texts["residual"]
    assert said.startswith(f"per {'token' if per_token else 'block'}, 0.") and " GB on " in said


def test_short_runs_are_refused():
    assert "too few steps" in Rettention().why_not(Stage(8, SMALL).call(0))
    assert Rettention().why_not(Stage(9, SMALL).call(0)) is None


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
@pytest.mark.parametrize(("name", "mask"), [("wan_odd", "search"), ("hunyuan_video_masked", "window")])
def test_through_the_sampler(comfy, name, mask):
    from interspatial.models import host
    from interspatial.models.attention.sparse import SparseAttention
    from interspatial.tests.models.tinies import BY_NAME, sample

    tiny = BY_NAME[name]
    model, prompts = tiny.model(), (tiny.prompt(1, 5), tiny.prompt(2, 7))
    options = {"steps": 9, "cfg": 3.0 if mask == "search" else 1.0, "prompts": prompts}
    plain = sample(model, tiny, **options)
    sparse = SparseAttention(Rettention(0.4, mask), blocks=Blocks("tile", 2))
    patched = host.attach_attention(model, Card("sparse", "sparse"), sparse)
    out = sample(patched, tiny, **options)
    assert out.isfinite().all() and not torch.equal(out, plain)
    assert "9/9 steps, kept" in host.report_of(patched)
