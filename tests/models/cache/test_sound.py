"""Video and sound in one model: the sound is forecast carefully, and on its own clock."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from interspatial.models.cache.job import _over_two
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.registry import CacheMethod
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.cache.taylorseer import TaylorSeer
from interspatial.models.cache.weights import newton
from interspatial.models.families import family_of
from interspatial.tests.models.cache.sites_of import at_site, attached, report
from interspatial.tests.models.tinies import BY_NAME, noise, sample

H3 = BY_NAME["minimax_h3"]
SHIFTS = {"minimax_h3_sigma_shift_video": 8.0, "minimax_h3_sigma_shift_audio": 2.0}


@pytest.mark.parametrize("options", [{}, SHIFTS], ids=["of the model", "of the options"])
def test_the_clock_is_the_models_own(comfy, options):
    from comfy.ldm.minimax.model import time_shift_sigma, time_shift_slope

    model = H3.model().model.diffusion_model
    clock = family_of(model).audio_clock
    video, sound = (8.0, 2.0) if options else (12.0, 3.0)
    for sigma in (1e-3, 0.2, 0.9, 0.987, 1.0):
        exact = torch.tensor(sigma, dtype=torch.float64)
        truth = float(time_shift_sigma(exact, video, sound)), float(time_shift_slope(exact, video, sound))
        assert clock(model, options, sigma) == pytest.approx(truth, rel=1e-12)
    assert clock(model, {}, 0.9)[0] == pytest.approx(0.692, abs=5e-4)


def test_sound_is_forecast_along_a_line_at_most():
    weigh = _over_two(lambda us, u: newton(us, u, 3))
    assert weigh([1.0, 0.8, 0.5], 0.4) == [0.0, *newton([0.8, 0.5], 0.4, 1)]
    assert weigh([1.0], 0.4) == [1.0]


class Parabola(CacheMethod):
    """Through the last three, whatever it does to noise."""

    keeps = 3
    least = 2

    def weigh(self, us, u) -> list[float]:
        return newton(us, u, 2)


class Curve:
    """In place of the model: a video velocity quadratic in its sigma, a sound velocity linear in its own sigma."""

    def __init__(self) -> None:
        self.ran = 0

    def why_not(self, step) -> None:
        return None

    def evaluate(self, step) -> torch.Tensor:
        self.ran += 1
        return self.answer(step)

    @staticmethod
    def answer(step) -> torch.Tensor:
        sigma = step.forward.position.sigma
        own, slope = step.forward.family.audio_clock(step.model, step.options, sigma)
        n = math.prod(step.shapes[0][1:])
        a, b, c = (noise(*step.x.shape, seed=seed) for seed in (1, 2, 3))
        velocity = torch.cat([(a + b * sigma + c * sigma**2)[..., :n], (slope * (a + b * own))[..., n:]], -1)
        return step.x - sigma * velocity


class Compare:
    """Above the cache: its answer against the truth, relative to the velocity."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def why_not(self, step) -> None:
        return None

    def evaluate(self, step) -> torch.Tensor:
        found, truth = step.proceed(), Curve.answer(step)
        self.errors.append(float((found - truth).abs().max() / (step.x - truth).abs().max()))
        return found


def test_the_output_is_exact_where_each_follows_its_polynomial_on_its_own_clock(comfy):
    curve, compare = Curve(), Compare()
    cache = StepCache(Parabola(), Fixed(2), 3, 0, "output")
    model = attached(attached(attached(H3.model(), curve, "sparse"), cache), compare, "measure")
    sample(model, H3, steps=9)
    assert (len(compare.errors), curve.ran) == (9, 6)
    assert max(compare.errors) <= 2e-5


def test_noisy_samplers_forecast_the_denoised_sound_on_its_own_clock(comfy, monkeypatch):
    """Its true denoised latent stands still here; what the model is asked for, along the video's clock, does not."""
    from interspatial.models.cache import step_cache

    class Still(Curve):
        @staticmethod
        def answer(step) -> torch.Tensor:
            sigma = step.forward.position.sigma
            own, slope = step.forward.family.audio_clock(step.model, step.options, sigma)
            n = math.prod(step.shapes[0][1:])
            goal = noise(*step.x.shape, seed=1)
            sound = step.x - (step.x - goal) * (sigma * slope / own)
            return torch.cat([goal[..., :n], sound[..., n:]], -1)

    settled = step_cache.Settled
    monkeypatch.setattr(step_cache, "Settled", lambda *args, **kw: replace(settled(*args, **kw), velocity=False))
    monkeypatch.setattr(Curve, "answer", Still.answer)
    compare = Compare()
    model = attached(at_site(attached(H3.model(), Still(), "sparse"), "output", 2, order=0), compare, "measure")
    sample(model, H3, steps=8)
    assert max(compare.errors) <= 2e-5


class Place:
    """Notes where the run is, for the blocks below."""

    sigma = own = 0.0

    def why_not(self, step) -> str:
        Place.sigma = step.forward.position.sigma
        Place.own = step.forward.family.audio_clock(step.model, step.options, Place.sigma)[0]
        return "only looks"


@pytest.fixture
def on_two_clocks(comfy, monkeypatch):
    """Blocks of MiniMax-H3 whose rows follow a line: sound over the sound's sigma, video over the video's."""
    from comfy.ldm.minimax.model import DiTBlock

    def forward(self, x, t_emb, mod_segments, rope_freqs, transformer_options=None):
        out, slope = torch.full_like(x, float("nan")), noise(*x.shape, seed=5)
        out[-22:-12] = 1 + slope[-22:-12] * Place.own
        out[-12:] = 1 + slope[-12:] * Place.sigma
        return out

    monkeypatch.setattr(DiTBlock, "forward", forward)


@pytest.mark.parametrize("name", ["minimax_h3", "minimax_h3_keyframe"])
def test_rows_of_the_last_block_follow_their_own_clock(on_two_clocks, name):
    tiny = BY_NAME[name]
    plain = sample(attached(tiny.model(), Place(), "measure"), tiny, steps=7)
    model = attached(at_site(tiny.model(), "last block", 2), Place(), "measure")
    cached = sample(model, tiny, steps=7)
    assert "model calls 4 of 7" in report(model)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_a_packed_sequence_that_cannot_be_told_apart_is_refused(comfy):
    class Hide:
        def why_not(self, step) -> str:
            step.forward.expected = "the packed layout is not known"
            return "only hides"

    model = attached(at_site(H3.model(), "last block", 2), Hide(), "measure")
    assert torch.equal(sample(model, H3, steps=4), sample(H3.model(), H3, steps=4))
    assert "cache 0/4 steps, unpatched: the packed layout is not known (4)" in report(model)


@pytest.mark.parametrize("tiny", [H3, BY_NAME["ltxav"]], ids=lambda tiny: tiny.name)
def test_weights_of_blocks_that_do_not_run_are_not_fetched_ahead(comfy, monkeypatch, tiny):
    import comfy.model_prefetch
    from comfy.model_patcher import ModelPatcher

    asked: list[bool] = []
    monkeypatch.setattr(comfy.model_prefetch, "make_prefetch_queue",
                        lambda blocks, device, options: asked.append(options["prefetch_dynamic_vbars"]))

    class Dynamic:
        """As if weights were streamed, for the time of the forward."""

        def why_not(self, step) -> None:
            return None

        def evaluate(self, step) -> torch.Tensor:
            with monkeypatch.context() as patch:
                patch.setattr(ModelPatcher, "is_dynamic", lambda self: True)
                return step.proceed()

    sample(attached(at_site(tiny.model(), "last block", 2), Dynamic(), "measure"), tiny, steps=5)
    assert asked == [True, True, False, True, False]


def test_default_settings_take_sound_along(comfy):
    """Nothing set: the preset decides, and the forecast of both is finite."""
    tiny = BY_NAME["ltxav"]
    model = attached(tiny.model(), StepCache(TaylorSeer(2), Fixed(3), 2, 1))
    assert sample(model, tiny, steps=8).isfinite().all()
    assert "model calls 4 of 8" in report(model)
