"""TaylorSeer in whole runs of fields that are known in closed form, and what each predictor asks for."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.cache.pace import Fixed
from interspatial.tests.models.cache.toy_run import SHIFTED, euler

pytestmark = pytest.mark.usefixtures("poisoned", "comfy")

# predictor, order -> entries kept, entries before a first forecast, axis
NEEDS = {
    ("divided differences", 0): (1, 1, "sigma"), ("divided differences", 1): (2, 2, "sigma"),
    ("divided differences", 4): (5, 2, "sigma"), ("damped", 2): (3, 2, "sigma"), ("hermite", 1): (2, 2, "step"),
    ("paper", 0): (1, 1, "step"), ("paper", 2): (3, 1, "step"),
}  # fmt: skip


def cache(order: int, interval: int, predictor: str = "divided differences", first: int = 1, last: int = 0):
    from interspatial.models.cache import StepCache
    from interspatial.models.cache.taylorseer import TaylorSeer

    return StepCache(TaylorSeer(order, predictor), Fixed(interval), first, last, "output")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("predictor", "order"), NEEDS)
def test_needs(predictor, order):
    from interspatial.models.cache.taylorseer import TaylorSeer

    method = TaylorSeer(order, predictor)
    assert (method.keeps, method.least, method.axis) == NEEDS[predictor, order]


@pytest.mark.parametrize("order", [0, 1])
def test_a_velocity_that_is_a_polynomial_of_sigma_is_forecast_exactly(order):
    """On the uneven sigmas of a shifted schedule, with first steps that leave uneven gaps."""
    factors = draw(order + 1, 1, 4, 3, 5)
    velocity = lambda x, sigma: sum(c * sigma**i for i, c in enumerate(factors))  # noqa: E731
    x = draw(1, 4, 3, 5, seed=1)
    plain, every = euler(cache(order, 1), velocity, x)
    found, ran = euler(cache(order, 2, first=3, last=1), velocity, x)
    assert every == list(range(20))
    assert ran == sorted({0, 1, *range(2, 20, 2), 19})
    assert (found[-1] - plain[-1]).norm() <= 1e-5 * plain[-1].norm()
    if order > 0:
        lower, _ = euler(cache(order - 1, 2, first=3), velocity, x)
        assert (lower[-1] - plain[-1]).norm() > 1e-3 * plain[-1].norm()


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_forecasting_a_linear_field_is_adams_bashforth(interval):
    """Section 3.1.3: N Euler steps with a line through the last two runs move x by
    H (v + (N - 1) / (2 N) (v - v before)), and for great N that is Adams-Bashforth's second method."""
    N, h = interval, -0.04
    field = draw(6, 6) / 3
    velocity = lambda x, sigma: x @ field.T  # noqa: E731
    sigmas = [1 + h * i for i in range(3 * N + 3)]
    path, ran = euler(cache(1, N), velocity, draw(2, 6, seed=1), sigmas)
    assert ran == [0, 1, 1 + N, 1 + 2 * N, 1 + 3 * N]
    for now in (1 + N, 1 + 2 * N):
        v, before = velocity(path[now], 0), velocity(path[now - N], 0)
        want = path[now] + N * h * (v + (N - 1) / (2 * N) * (v - before))
        assert (path[now + N] - want).norm() <= 2e-6 * want.norm()
        assert (path[now + N] - path[now] - N * h * v).norm() > 1e-4 * want.norm(), "more than a long Euler step"


def test_paper_runs_the_steps_of_its_code_and_repeats_the_first_output():
    """N = 5, first = 1: full at 0, 5, 10, 15, and steps 1 to 4 are pure reuse of step 0."""
    velocity = lambda x, sigma: x * sigma  # noqa: E731
    path, ran = euler(cache(2, 5, "paper"), velocity, draw(1, 3))
    assert ran == [0, 5, 10, 15]
    for step in range(1, 5):
        slope = (path[step + 1] - path[step]) / (SHIFTED[step + 1] - SHIFTED[step])
        assert torch.allclose(slope, velocity(path[0], SHIFTED[0]), rtol=1e-4)


def test_paper_takes_second_differences_only_from_runs_after_the_first_ones():
    """With three first steps its code has factors 0 and 1 after them, and the second from the next run on."""
    velocity = lambda x, sigma: torch.full_like(x, 20 * sigma**3)  # noqa: E731
    lines, bent = (euler(cache(order, 4, "paper", first=3), velocity, torch.ones(1, 2))[0] for order in (1, 2))
    assert torch.equal(lines[6], bent[6]), "steps 3 to 5 are forecast alike"
    assert not torch.allclose(lines[10], bent[10])


def test_the_first_forecast_waits_for_two_outputs():
    assert euler(cache(1, 5), lambda x, sigma: x, torch.ones(1, 2))[1] == [0, 1, 6, 11, 16]
    assert euler(cache(0, 5), lambda x, sigma: x, torch.ones(1, 2))[1] == [0, 5, 10, 15]


def test_widgets_are_the_settings():
    from comfy_api.latest import io
    from interspatial.models.cache.taylorseer import PREDICTORS, TaylorSeer

    inputs = {i.id: i for i in TaylorSeer.inputs(io)}
    assert TaylorSeer(**{name: i.default for name, i in inputs.items()}) == TaylorSeer()
    assert inputs["predictor"].options == list(PREDICTORS)
