"""Where a call lies on the axis of a forecast, and when what was kept no longer continues."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.cache.clock import Clock
from interspatial.models.report import Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule

DOWN = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
RESTARTED = (*DOWN[:6], 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def ticks(sigmas, flow=True):
    run, clock = Run(Schedule(sigmas, lambda percent: 1 - percent, "sample_euler", flow), Report()), Clock()
    for sigma in sigmas[:-1]:
        run.begin_call(sigma)
        first = clock.tick(run)
        assert clock.tick(run) is first, "all evaluations of a call lie at one place"
        yield first


def test_a_generation_ends_where_sigma_rises():
    found = list(ticks(RESTARTED))
    assert [tick.generation for tick in found] == [0] * 6 + [1] * 8
    assert [tick.sigma for tick in found] == list(RESTARTED[:-1])


def test_rounding_of_sigma_is_no_rise():
    assert {tick.generation for tick in ticks((1.0, 0.5, 0.5 * (1 + 1e-6), 0.25, 0.0))} == {0}


@pytest.mark.parametrize("flow", [True, False])
def test_the_abscissa(flow):
    tick = list(ticks((4.0, 2.0, 1.0, 0.0), flow))[1]
    assert tick.at("step") == 1.0
    assert tick.at("sigma") == (2.0 if flow else math.log(2.0))
    assert tick.at("sigma", 0.25) == (0.25 if flow else math.log(0.25))


def test_nothing_is_forecast_across_a_restart(comfy):
    """Behind the rise the model runs until a line can be laid through what was kept there, as at the start."""
    from interspatial.models.cache.pace import Fixed
    from interspatial.models.cache.step_cache import StepCache
    from interspatial.models.cache.taylorseer import TaylorSeer
    from interspatial.tests.models.cache.toy_run import euler

    def velocity(x, sigma):
        return torch.full_like(x, 3 * sigma - 1)

    x = torch.zeros(1, 2, dtype=torch.float64)
    path, ran = euler(StepCache(TaylorSeer(), Fixed(2), 0, 0, "output"), velocity, x, RESTARTED)
    assert ran == [0, 1, 3, 5, 6, 7, 9, 11, 13]
    plain, _ = euler(StepCache(TaylorSeer(), Fixed(1), 0, 0, "output"), velocity, x, RESTARTED)
    torch.testing.assert_close(path[-1], plain[-1], rtol=1e-5, atol=1e-5)
