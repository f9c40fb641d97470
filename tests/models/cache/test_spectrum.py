"""Spectrum and reuse: the weights, and whole runs of fields that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.weights import GAIN, chebyshev, newton
from interspatial.tests.models.cache.toy_run import SHIFTED, euler

pytestmark = pytest.mark.usefixtures("poisoned", "comfy")

KEPT = list(SHIFTED[4:12:2])   # four runs, every second step


def spectrum(**settings):
    from interspatial.models.cache.spectrum import Spectrum

    return Spectrum(**settings)


def final(method, velocity, **kwargs) -> torch.Tensor:
    from interspatial.models.cache import StepCache

    return euler(StepCache(method, Fixed(kwargs.pop("interval", 2)), 3, 1, "output"), velocity, torch.ones(1, 4))[0][-1]


def test_blend_goes_from_the_line_to_the_fit():
    u = SHIFTED[11]
    line, fit = newton(KEPT, u, 1), chebyshev(KEPT, u, 2, 0.1)
    assert spectrum(blend=0.0).weigh(KEPT, u) == line
    assert spectrum(blend=1.0).weigh(KEPT, u) == fit
    assert spectrum(blend=0.25).weigh(KEPT, u) == [0.75 * a + 0.25 * b for a, b in zip(line, fit, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"blend": 1.0}, {"degree": 6, "ridge": 1e-3, "blend": 1.0}], ids=str)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_weights_sum_to_one_and_stay_within_the_guard(settings, count):
    kept = list(SHIFTED[:count])
    for ahead in range(count, count + 8):
        found = spectrum(**settings).weigh(kept, SHIFTED[ahead])
        assert len(found) == count
        assert sum(found) == pytest.approx(1)
        assert sum(map(abs, found)) <= GAIN or sum(map(abs, found)) == pytest.approx(1)


def test_a_constant_velocity_is_forecast_exactly():
    velocity = lambda x, sigma: torch.full_like(x, 0.3)  # noqa: E731
    assert torch.allclose(final(spectrum(degree=4, blend=1.0), velocity), torch.tensor(0.7), atol=1e-5)


def test_a_line_is_forecast_exactly_without_the_fit():
    velocity = lambda x, sigma: torch.full_like(x, 1 + 2 * sigma)  # noqa: E731
    from interspatial.models.cache.reuse import Reuse

    plain = final(Reuse(), velocity, interval=1)
    assert torch.allclose(final(spectrum(blend=0.0), velocity), plain, atol=1e-5)
    assert not torch.allclose(final(Reuse(), velocity), plain, atol=1e-2)


def test_the_fit_passes_less_noise_on_than_the_line():
    """Independent noise on each output: the forecast has the sum of squared weights of its variance."""
    kept, u = list(SHIFTED[2:10]), SHIFTED[10]
    fit, line = spectrum(degree=2, blend=1.0).weigh(kept, u), newton(kept, u, 1)
    assert sum(w * w for w in fit) < 0.6 * sum(w * w for w in line)


def test_a_smooth_curve_is_followed_better_than_by_reuse():
    kept, u = list(SHIFTED[2:12]), SHIFTED[13]
    curve = lambda t: math.exp(-2 * t)  # noqa: E731
    found = sum(w * curve(t) for w, t in zip(spectrum().weigh(kept, u), kept, strict=True))
    assert abs(found - curve(u)) < 0.5 * abs(curve(kept[-1]) - curve(u))


def test_history_is_what_is_kept():
    assert (spectrum(history=5).keeps, spectrum(history=5).least) == (5, 2)


def test_reuse_repeats_the_velocity():
    """Two steps of one velocity each: what Euler does with half the steps."""
    from interspatial.models.cache import StepCache
    from interspatial.models.cache.reuse import Reuse

    velocity = lambda x, sigma: -x * sigma  # noqa: E731
    found, ran = euler(StepCache(Reuse(), Fixed(2), 0, 0, "output"), velocity, torch.ones(1, 3), SHIFTED)
    half, every = euler(StepCache(Reuse(), Fixed(1), 0, 0, "output"), velocity, torch.ones(1, 3), SHIFTED[::2])
    assert (ran, every) == (list(range(0, 20, 2)), list(range(10)))
    assert torch.allclose(found[-1], half[-1], atol=1e-6)


def test_widgets_are_the_settings():
    from comfy_api.latest import io
    from interspatial.models.cache.reuse import Reuse
    from interspatial.models.cache.spectrum import Spectrum

    assert Spectrum(**{i.id: i.default for i in Spectrum.inputs(io)}) == Spectrum()
    assert Reuse.inputs(io) == []
