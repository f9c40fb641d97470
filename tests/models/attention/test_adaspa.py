"""AdaSpa: when it searches, what it goes by in between, and what every method must do."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import kept_mask
from interspatial.models.attention import adaspa
from interspatial.models.attention.adaspa import AdaSpa
from interspatial.models.attention.job import Job
from interspatial.models.attention.search import dense_with_lse, search
from interspatial.models.layout import arrange
from interspatial.models.report import Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from interspatial.tests.models.attention.contract import (
    MIXED,
    RUNS,
    TILES,
    call_of,
    check_everything_kept_is_dense,
    check_through_the_sampler,
    truth,
    video_part,
)

pytestmark = pytest.mark.usefixtures("poisoned")

SMALL = arrange([("text", 3), ("video", (2, 6, 7))])


class Stage:
    """The calls of one layer in a run of `steps` steps; another seed is another moment of the run."""

    def __init__(self, steps: int = 20, layout=MIXED, sampler: str = "") -> None:
        self.layout, self.run = layout, Run(
            Schedule([1 - i / steps for i in range(steps + 1)], lambda percent: 1.0 - percent, sampler), Report()
        )  # fmt: skip

    def call(self, step: int, seed: int = 0, **options):
        """The first call of a step; sigma may jump up."""
        self.run.begin_call(self.run.schedule.sigmas[step])
        assert self.run.step == step
        return call_of(self.layout, run=self.run, seed=seed, **options)


def is_dense(out, call) -> bool:
    return bool((out.double() - truth(call)).abs().max() < 1e-5)


def test_everything_kept_is_dense():
    check_everything_kept_is_dense(AdaSpa())


@pytest.mark.parametrize("heads", adaspa.HEADS)
@pytest.mark.parametrize("density", [0.02, 0.15, 0.5])
def test_the_density_between_searches(density, heads):
    for blocks in (TILES, RUNS):
        stage, method = Stage(), AdaSpa(heads=heads)
        first = Job(stage.call(0), blocks, "row", density)
        assert is_dense(method.attend(first), first.call) and first.used is None
        job = Job(stage.call(1, seed=1), blocks, "row", density)
        method.attend(job)
        part = video_part(job.used, job)
        video = part.shape[1]
        budget = max(video, round(density * video * video))
        assert (part.sum((1, 2)).view(2, 3).sum(1) == 3 * budget).all()
        assert part[:, torch.eye(video, dtype=torch.bool)].all()


def test_between_searches_it_keeps_what_the_search_found():
    stage, method = Stage(), AdaSpa()
    first = Job(stage.call(0), TILES, None, 0.2)
    method.attend(first)
    plan = search(first, dense_with_lse(first)[1], by_head=False).plan(first.order)
    for step in (1, 2):
        job = Job(stage.call(step, seed=step), TILES, None, 0.2)
        out = method.attend(job)
        assert torch.equal(kept_mask(job.used), kept_mask(plan))
        assert torch.equal(out, block_attend(job.call.q, job.call.k, job.call.v, plan))


def searches_of(method: AdaSpa, stage: Stage, steps: range, monkeypatch, density=lambda step: 0.3):
    """Steps at which it searched, and those of them at which it was dense too."""
    searched, dense = [], []
    for name, into in (("search", searched), ("dense_with_lse", dense)):
        real = getattr(adaspa, name)

        def noted(*args, real=real, into=into, **options):
            into.append(stage.run.step)
            return real(*args, **options)

        monkeypatch.setattr(adaspa, name, noted)
    for step in steps:
        method.attend(Job(stage.call(step, batch=1, heads=1), TILES, None, density(step)))
    return searched, dense


@pytest.mark.parametrize(("searches", "want"), [(1, [10]), (2, [10, 30]), (3, [10, 24, 37]), (4, [10, 20, 30, 40])])
def test_searches_lie_evenly_over_the_rest_of_the_run(searches, want, monkeypatch):
    """With 50 steps of which 10 are dense, where the paper has them: steps 10 and 30; 10, 20, 30 and 40."""
    found = searches_of(AdaSpa(searches=searches), Stage(50, SMALL), range(10, 50), monkeypatch)
    assert found == (want, [10])


def test_a_short_run_searches_once(monkeypatch):
    assert searches_of(AdaSpa(searches=4), Stage(8, SMALL), range(3, 8), monkeypatch) == ([3], [3])


def test_a_ramp_is_followed_by_searches_without_dense_calls(monkeypatch):
    falling = {0: 0.8, 1: 0.6, 2: 0.4}
    found = searches_of(AdaSpa(), Stage(20, SMALL), range(12), monkeypatch, lambda step: falling.get(step, 0.3))
    assert found == ([0, 1, 2, 3, 10], [0])


def test_a_restart_begins_anew(monkeypatch):
    stage = Stage(20, SMALL)
    found = searches_of(AdaSpa(), stage, [0, 1, 2, 3, 1, 2, 11], monkeypatch)
    assert found == ([0, 1, 11], [0, 1])


def test_the_second_call_of_a_step_belongs_to_it():
    stage, method = Stage(20, SMALL, sampler="sample_heun"), AdaSpa()
    for want in (True, False, False):  # both calls of the first step, the first of the second
        stage.run.begin_call(1.0 if want else 0.95)
        call = call_of(SMALL, run=stage.run)
        assert is_dense(method.attend(Job(call, TILES, None, 0.3)), call) is want


def test_a_later_search_goes_by_the_first_log_sum_exp_and_is_sparse_at_once():
    stage, method = Stage(20), AdaSpa()
    first = Job(stage.call(0), TILES, None, 0.2)
    method.attend(first)
    _, lse = dense_with_lse(first)
    job = Job(stage.call(10, seed=1), TILES, None, 0.2)
    out = method.attend(job)
    plan = search(job, lse.half().float(), by_head=False).plan(job.order)
    assert torch.equal(kept_mask(job.used), kept_mask(plan))
    assert torch.equal(out, block_attend(job.call.q, job.call.k, job.call.v, plan))


def test_rows_that_are_not_video_are_exact():
    stage, method = Stage(), AdaSpa()
    bias = torch.zeros(2, MIXED.tokens)
    bias[0, 50:90], bias[1, ::3] = -torch.inf, -1.25
    for tail in ("row", None):
        for step in (0, 1):
            call = stage.call(step, seed=step, bias=bias)
            out, want = method.attend(Job(call, TILES, tail, 0.2)), truth(call)
        video = torch.zeros(MIXED.tokens, dtype=torch.bool)
        video[MIXED.video.start : MIXED.video.stop] = True
        torch.testing.assert_close(out[:, ~video].double(), want[:, ~video], atol=1e-5, rtol=0)
        assert (out[:, video] - want[:, video]).norm() > 0.1


def test_prompts_in_one_batch_or_one_after_the_other():
    together, apart = Stage(), Stage()
    method = AdaSpa(heads="by recall")
    for step in (0, 1, 9, 10, 11):
        call = together.call(step, seed=step)
        want = method.attend(Job(call, TILES, "row", 0.2))
        call = apart.call(step, seed=step)
        for branch in call.branches:
            out = method.attend(Job(call.only(branch), TILES, "row", 0.2))
            torch.testing.assert_close(out, want[branch.rows], atol=1e-5, rtol=0)


def test_a_prompt_that_joins_later_gets_its_own_search():
    stage, method = Stage(), AdaSpa()
    call = stage.call(0)
    method.attend(Job(call.only(call.branches[0]), TILES, None, 0.2))
    job = Job(stage.call(1, seed=1), TILES, None, 0.2)
    out, want = method.attend(job), truth(job.call)
    assert (out[0] - want[0]).norm() > 0.1 and job.used is not None
    torch.testing.assert_close(out[1].double(), want[1], atol=1e-5, rtol=0)
    job = Job(stage.call(2, seed=2), TILES, None, 0.2)
    method.attend(job)
    assert len(job.used.cols) == 6, "from then on they go together"


def test_runs_and_layers_do_not_meet():
    method = AdaSpa()
    for stage, layer in ((one := Stage(), 0), (one, 1), (Stage(), 0)):
        call = replace(stage.call(5), layer=layer)
        assert is_dense(method.attend(Job(call, TILES, None, 0.2)), call)


@pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="COMFYUI_PATH is not set")
def test_through_the_sampler(comfy):
    check_through_the_sampler(AdaSpa(0.4))
