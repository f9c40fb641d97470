"""The change of the picture inside the noise: against a slow Fourier transform, and what the pace makes of it."""
# B batch   C channels   T H W: latent frames, rows, columns

from __future__ import annotations

import cmath
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from interspatial.models.cache.clock import Tick
from interspatial.models.cache.seacache import SeaCache, change, picture_part, picture_power, shares

pytestmark = pytest.mark.usefixtures("poisoned", "comfy")

SIGMAS = [(1.0, True), (0.9, True), (0.2, True), (14.6, False), (0.03, False)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_picture_part(x: torch.Tensor, sigma: float, flow: bool, exponent: float) -> torch.Tensor:
    """By sums over all places and frequencies in double precision. x: [sizes]"""
    sizes = tuple(x.shape)
    places = list(itertools.product(*map(range, sizes)))
    signed = [tuple((k if k <= (n - 1) // 2 else k - n) / n for k, n in zip(f, sizes, strict=True)) for f in places]
    power = [max(math.hypot(*f), 1 / max(sizes)) ** -exponent for f in signed]
    mean = sum(power) / len(power)
    a, b = (1 - sigma, sigma) if flow else (1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2))
    gain = [s / mean / (a * a * s / mean + b * b) for s in power]
    level = sum(gain) / len(gain)
    values = x.double() if flow else x.double() / math.sqrt(1 + sigma**2)
    wave = [[cmath.exp(2j * math.pi * sum(a * b / n for a, b, n in zip(f, p, sizes, strict=True))) for p in places]
            for f in places]  # fmt: skip
    waves = torch.tensor(wave, dtype=torch.complex128)
    spectrum = waves.conj() @ values.flatten().to(torch.complex128)
    back = (waves.T @ (spectrum * torch.tensor(gain) / level)) / len(places)
    assert back.imag.abs().max() < 1e-9
    return back.real.reshape(sizes)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("sigma", "flow"), SIGMAS)
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 6, 7), (9, 6), (11,)], ids=str)
def test_filter_against_a_slow_transform(sizes, sigma, flow, exponent):
    x = noise(2, 3, *sizes)
    found = picture_part(x, picture_power(sizes, exponent, x.device), sigma, flow)
    assert found.dtype == torch.float32
    for b, c in ((0, 0), (1, 2)):
        want = slow_picture_part(x[b, c], sigma, flow, exponent)
        assert (found[b, c] - want).norm() <= 1e-5 * want.norm()


def test_picture_and_noise_shares():
    assert shares(0.25, True) == (0.75, 0.25)
    for sigma in (0.0, 0.5, 14.6):
        a, b = shares(sigma, False)
        assert a * a + b * b == pytest.approx(1)
        assert b == pytest.approx(sigma * a)


def test_change_of_equal_latents_is_zero_and_relative():
    x = noise(1, 2, 3, 4, 5)
    assert change(x, x) == 0
    assert change(x, 2 * x).item() == pytest.approx(0.5)
    assert change(torch.zeros(4), torch.zeros(4)) == 0


def wave(sizes: tuple[int, int], k: int) -> torch.Tensor:
    """A cosine of k periods along the rows, [1, 1, H, W], of variance 1."""
    H, W = sizes
    return (2**0.5 * torch.cos(2 * math.pi * k * torch.arange(W) / W)).expand(1, 1, H, W)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_wave_passes_with_the_gain_of_its_frequency(k):
    """In closed form: p = 2, 16 x 16, sigma 0.6."""
    sizes = (16, 16)
    power = picture_power(sizes, 2.0, torch.device("cpu"))
    gain = lambda s: s / (0.16 * s + 0.36)  # noqa: E731
    found = picture_part(wave(sizes, k), power, 0.6, True)
    own = (k / 16) ** -2 / power_sum(16)
    assert torch.allclose(found, wave(sizes, k) * gain(own) / gain(power).mean(), atol=1e-5)


def power_sum(n: int) -> float:
    """Mean of 1 / f^2 over an n x n grid, the constant part counted as f = 1 / n."""
    axis = [min(k, n - k) / n for k in range(n)]
    return sum(1 / max(a * a + b * b, 1 / n**2) for a in axis for b in axis) / n**2


def relative_change(sigma: float, seen: torch.Tensor) -> float:
    """Of a latent of white noise and coarse structure from one that has `seen` besides, at one sigma."""
    x = (1 - sigma) * wave((16, 16), 1) + sigma * noise(1, 1, 16, 16)
    power = picture_power((16, 16), 2.0, x.device)
    return change(*(picture_part(latent, power, sigma, True) for latent in (x + 0.2 * seen, x))).item()


def test_early_only_structure_counts_late_detail_does_too():
    """At high noise a change of fine detail is taken for noise; near the end the filter is flat, as without one."""
    fine, coarse = wave((16, 16), 7), wave((16, 16), 1)   # the same values in another order
    early = relative_change(0.95, fine) / relative_change(0.95, coarse)
    late = relative_change(0.02, fine) / relative_change(0.02, coarse)
    assert early < 0.1
    assert late == pytest.approx(1, abs=0.1)


def test_white_noise_counts_less_than_structure_of_the_same_size():
    assert relative_change(0.8, noise(1, 1, 16, 16, seed=1)) < 0.5 * relative_change(0.8, wave((16, 16), 1))


def job(x: torch.Tensor, sigma: float, shapes: tuple = (), rows: slice = slice(0, 1), flow: bool = True):
    branches = (SimpleNamespace(rows=rows),)
    step = SimpleNamespace(x=x, shapes=shapes or (tuple(x.shape),), forward=SimpleNamespace(branches=branches))
    return SimpleNamespace(step=step, tick=Tick(1, 0, 10, sigma, 0, flow))


def decisions(pace: SeaCache, latents: list, sigma: float = 0.5, first: int = 1, **kwargs) -> list[bool]:
    """What the pace says at each step; those before `first` run anyway."""
    memory, ran, found = pace.begin(), -1, []
    for step, x in enumerate(latents):
        found.append(pace.runs(memory, step - ran, job(x, sigma, **kwargs)))
        if found[-1] or step < first:
            ran = step
    return found


def growing(steps: int) -> list[torch.Tensor]:
    """Latents of which each is a tenth of itself away from the one before."""
    x = noise(1, 2, 3, 6, 5)
    return [x / 0.9**i for i in range(steps)]


def test_changes_add_up_until_the_model_runs():
    """Each step changes by 0.1 of the new latent: two steps stay below 0.25, the third one is above."""
    assert decisions(SeaCache(0.25, 9), growing(8)) == [False, False, False, True, False, False, True, False]


def test_max_skips_ends_a_row_of_forecasts():
    x = noise(1, 2, 6, 5)
    assert decisions(SeaCache(0.2, 2), [x] * 8) == [False, False, False, True, False, False, True, False]
    assert decisions(SeaCache(5.0, 0), [x] * 3) == [True] * 3


def test_threshold_zero_runs_at_any_change():
    assert decisions(SeaCache(0.0, 9), growing(4)) == [False, True, True, True]


def test_only_the_video_of_the_first_prompt_counts():
    """Packed rows of video and sound, two prompts: other rows and the sound may hold anything."""
    shapes = ((1, 2, 3, 6, 5), (1, 4, 7))
    rows = []
    for i, x in enumerate(growing(5)):
        own = torch.cat([x.flatten(1), noise(1, 28, seed=i)], 1)[:, None]
        rows.append(torch.cat([noise(1, *own.shape[1:], seed=9 + i), own]))
    packed = decisions(SeaCache(0.25, 9), rows, shapes=shapes, rows=slice(1, 2))
    assert packed == decisions(SeaCache(0.25, 9), growing(5))


def test_models_of_growing_sigma_see_their_latent_at_variance_one():
    """A latent that only its noise makes larger has not changed by that factor."""
    x = noise(1, 2, 8, 8)
    power = picture_power((8, 8), 0.0, x.device)
    old, new = (picture_part(x * math.hypot(1, sigma), power, sigma, False) for sigma in (14.0, 7.0))
    assert change(old, new) < 1e-5


def test_a_preview_knows_only_the_cap():
    pace = SeaCache(0.2, 3)
    assert [pace.foreseen(pace.begin(), gap) for gap in (1, 3, 4)] == [None, None, True]


@pytest.mark.parametrize("name", ["wan", "ltxav", "cogvideox", "flux"])
def test_in_a_run_of_a_real_model(name):
    """Video, video with sound in one row, a model of growing sigma, an image: one run, then two forecasts."""
    from interspatial.models import host
    from interspatial.models.cache import StepCache
    from interspatial.models.cache.reuse import Reuse
    from interspatial.models.report import Card
    from interspatial.tests.models.tinies import BY_NAME, sample

    tiny = BY_NAME[name]
    cache = StepCache(Reuse(), SeaCache(5.0, 2), 1, 0, "output")
    model = host.attach_step(tiny.model(), Card("cache", "cache", skips="whole evaluations"), cache)
    assert sample(model, tiny, steps=7, cfg=3.0).isfinite().all()
    assert "model calls 3 of 7" in host.report_of(model)
