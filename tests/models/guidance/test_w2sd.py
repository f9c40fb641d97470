"""Reflection as arithmetic: against closed forms on linear models, in flow and in noise form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from interspatial.models.guidance import SAMPLERS, Reflection, calls_per_step, cost, reflect, why_refused
from interspatial.models.schedule import Schedule, StepWindow

X = torch.tensor([[0.7, -1.3, 2.1]], dtype=torch.float64)
LEVEL = 0.8


def linear(rate: float):
    """velocity = rate * x, in the form x0 = x - sigma * velocity that both flow and noise predictors have"""
    return lambda x, sigma: x - sigma * rate * x


def flow_schedule(steps: int, sampler: str = "sample_euler", last: float = 0.0) -> Schedule:
    sigmas = torch.linspace(1.0, last, steps + 1, dtype=torch.float64).tolist()
    return Schedule(sigmas, lambda percent: 1.0 - percent, sampler)


@pytest.mark.parametrize("label", ["old", "new"])
def test_there_and_back_has_its_closed_form(label):
    """x' = (1 + h a) x, back by the weak rate: x~ = (1 - h b) (1 + h a) x, whatever sigma the weak part is told."""
    a, b, h = 0.9, 0.4, -0.05
    found = reflect(X, LEVEL, LEVEL + h, linear(a), linear(b), label=label)
    torch.testing.assert_close(found, (1 + h * a) * (1 - h * b) * X, rtol=1e-12, atol=0)
    half = reflect(X, LEVEL, LEVEL + h, linear(a), linear(b), strength=0.5, label=label)
    torch.testing.assert_close(half, (X + found) / 2, rtol=1e-12, atol=0)


def test_equal_parts_move_by_the_square_of_the_step():
    moves = [(reflect(X, LEVEL, LEVEL + h, linear(0.9), linear(0.9)) - X).norm() for h in (-0.1, -0.05, -0.025)]
    for wide, narrow in pairwise(moves):
        assert float(wide / narrow) == pytest.approx(4.0, rel=1e-6)


def test_labels_agree_up_to_the_square_of_the_step():
    """The field depends on sigma, so the told sigma matters; less and less."""

    def weak(x, sigma):
        return x - sigma * (0.3 + sigma) * x

    gaps = []
    for h in (-0.1, -0.05, -0.025):
        old, new = (reflect(X, LEVEL, LEVEL + h, linear(0.9), weak, label=label) for label in ("old", "new"))
        gaps.append(float((old - new).norm() / X.norm()))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.2)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.1)


def guided(with_prompt: float, without: float, cfg: float):
    """Guidance of two linear fields that pull towards different points."""

    def denoise(x, sigma):
        velocity = (x - without) + cfg * ((x - with_prompt) - (x - without))
        return x - sigma * velocity

    return denoise


def run(x, steps: int, own, strong=None, weak=None):
    sigmas = torch.linspace(1.0, 0.02, steps + 1, dtype=torch.float64).tolist()
    for sigma, following in pairwise(sigmas):
        if strong is not None:
            x = reflect(x, sigma, following, strong, weak)
        x = x + (x - own(x, sigma)) / sigma * (following - sigma)
    return x


def test_guidance_as_roles_is_more_guidance():
    """Strong 5.5 and weak 1.0 over a run at 5.5 is, but for the square of the step, a run at 5.5 + (5.5 - 1.0)."""
    apart = []
    for steps in (20, 40, 80):
        reflected = run(X, steps, guided(0.1, -0.2, 5.5), guided(0.1, -0.2, 5.5), guided(0.1, -0.2, 1.0))
        apart.append(float((reflected - run(X, steps, guided(0.1, -0.2, 10.0))).norm()))
    plain = run(X, 80, guided(0.1, -0.2, 5.5))
    assert apart[2] < 0.1 * float((run(X, 80, guided(0.1, -0.2, 10.0)) - plain).norm())
    assert apart[0] / apart[1] == pytest.approx(2.0, rel=0.15), "squares of the step, summed over the steps"
    assert apart[1] / apart[2] == pytest.approx(2.0, rel=0.1)


def test_window_picks_steps_and_never_one_that_ends_at_zero():
    schedule = flow_schedule(10)
    assert Reflection().steps(schedule) == (0, 1, 2, 3, 4, 5)
    assert Reflection(StepWindow(0.0, 1.0)).steps(schedule) == tuple(range(9))
    assert Reflection(StepWindow(0.0, 1.0)).steps(flow_schedule(10, last=0.5)) == tuple(range(10)), "a split run"
    assert Reflection(StepWindow(0.0, 0.0)).steps(schedule) == ()
    assert Reflection(StepWindow(0.25, 1.0), every=3).steps(schedule) == (3, 6)
    assert Reflection(StepWindow(0.0, 0.5)).steps(Schedule([0.1, 0.5, 0.9], lambda p: 1.0 - p)) == (), "upwards"


@pytest.mark.parametrize(("reflection", "sampler", "reason"), [
    (Reflection(), "sample_euler", None),
    (Reflection(strength=0.0), "sample_euler", "strength is 0"),
    (Reflection(StepWindow(0.97, 1.0)), "sample_euler", "no step"),
    (Reflection(), "sample_unipc", "scaled copy"),
    (Reflection(), "sample_euler_cfg_pp", "without a prompt"),
    (Reflection(), "sample_of_tomorrow", "not known"),
])  # fmt: skip
def test_reasons(reflection, sampler, reason):
    found = reflection.why_not(flow_schedule(10, sampler))
    assert found is None if reason is None else reason in found


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="1 or more"):
        Reflection(every=0)
    with pytest.raises(ValueError, match="old, new"):
        Reflection(label="other")


def test_cost_counts_calls_of_the_sampler():
    assert cost(flow_schedule(10), 5, own=2, strong=2, weak=1) == (
        "5 of 10 steps reflected: 35 model evaluations in place of 20 (1.75 x), as many as 18 plain steps"
    )
    assert cost(flow_schedule(10, "sample_heun"), 5, own=1, strong=1, weak=1).startswith(
        "5 of 10 steps reflected: 29 model evaluations in place of 19"
    )


def test_accepted_samplers_and_refused_ones_are_apart():
    assert not any(why_refused(f"sample_{name}") for name in SAMPLERS)
    assert why_refused("dpm_fast_function") and why_refused("sample_sa_solver")
    assert calls_per_step(flow_schedule(4, "sample_seeds_3"), 0) == 3
    assert calls_per_step(flow_schedule(4, "sample_seeds_3"), 3) == 1
