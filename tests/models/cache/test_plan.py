"""The plan of a step cache is what the run then does."""

from __future__ import annotations

import pytest
import torch
from interspatial.tests.models.cache.plan_runs import STEPS, attached, cache, calls_of, listening, planned, run
from interspatial.tests.models.tinies import BY_NAME, TINIES


@pytest.fixture(autouse=True)
def _comfy(comfy):
    pass


SETTINGS = {
    "preset": {},
    "interval 3": {"pace": ("fixed", {"interval": 3}), "first": 2, "last": 1},
    "no warm-up": {"pace": ("fixed", {"interval": 4}), "first": 0, "last": 0},
    "paper": {"settings": {"predictor": "paper"}, "pace": ("fixed", {"interval": 4}), "first": 0, "last": 0},
    "order 3": {"settings": {"order": 3}, "pace": ("fixed", {"interval": 2}), "first": 1},
    "growing": {"pace": ("growing", {"flex": 1.5}), "first": 1, "last": 1},
    "spectrum": {"method": "spectrum", "pace": ("growing", {}), "first": 2},
    "every step": {"pace": ("fixed", {"interval": 1})},
}
SAMPLERS = ("euler", "heun", "heunpp2", "dpm_2", "dpmpp_2s_ancestral", "res_multistep", "uni_pc", "seeds_3", "er_sde")


@pytest.mark.parametrize(("setting", "sampler"), [
    *((name, "euler") for name in SETTINGS), *(("interval 3", name) for name in SAMPLERS[1:]),
    ("no warm-up", "heun"), ("growing", "dpm_2"), ("spectrum", "heunpp2")])  # fmt: skip
def test_the_run_does_what_the_plan_says(setting, sampler, monkeypatch):
    tiny = BY_NAME["wan"]
    model = attached(tiny.model(), cache(**SETTINGS[setting]))
    plan = planned(model, sampler)
    seen, _ = run(model, tiny, monkeypatch, sampler)
    assert calls_of(plan) == seen
    assert (plan.why is None) == any(does == "forecast" for *_, does in seen)


@pytest.mark.parametrize("tiny", {tiny.family: tiny for tiny in TINIES}.values(), ids=lambda tiny: tiny.family)
def test_every_family_is_planned_as_it_runs(tiny, monkeypatch):
    """Where blocks cannot be skipped, plan and run give the same reason. With and without the size of the latent."""
    from interspatial.models import host

    model = attached(tiny.model(), cache(pace=("fixed", {"interval": 2}), first=1, last=0, site="last block"))
    plan = planned(model, steps=4, latent=tiny.samples())
    assert plan.calls == planned(model, steps=4).calls
    seen, _ = run(model, tiny, monkeypatch, steps=4)
    assert (calls_of(plan) == seen) if plan.why is None else (seen == [] and plan.why in host.report_of(model))


@pytest.mark.parametrize("forecast", ["reuse", "linear"])
@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "cosmos", "cogvideox"])
def test_blocks_that_are_left_out(name, forecast, monkeypatch):
    from interspatial.models import host

    tiny = BY_NAME[name]
    settings = {"settings": {"forecast": forecast}, "pace": ("fixed", {"interval": 3}), "first": 2, "last": 1}
    model = attached(tiny.model(), cache("delta_dit", **settings))
    plan = planned(model, latent=tiny.samples())
    seen, kept = run(model, tiny, monkeypatch)
    assert calls_of(plan) == seen
    assert plan.history(1) <= kept < plan.history(1) * 1.5, "the text of a tiny prompt is a tenth of its tokens"
    assert f"blocks {plan.blocks}" in host.report_of(model)


@pytest.mark.parametrize(("given", "why"), [
    ({"pace": ("seacache", {}), "first": 3, "last": 2}, "by the latent"),
    ({"method": "first_block", "first": 3, "last": 2}, "by the model")])  # fmt: skip
def test_what_cannot_be_told_is_open(given, why, monkeypatch):
    tiny = BY_NAME["wan"]
    model = attached(tiny.model(), cache(**given))
    plan = planned(model)
    assert [call.does for call in plan.calls] == ["run"] * 3 + ["depends"] * (STEPS - 5) + ["run"] * 2
    assert {call.why for call in plan.calls} == {"warm-up", "tail", why}
    assert plan.saving == (0.0, (STEPS - 5) / STEPS)
    seen, _ = run(model, tiny, monkeypatch)
    assert all(call.does in (does, "depends") for call, (*_, does) in zip(plan.calls, seen, strict=True))


def test_weights_are_those_of_the_run(monkeypatch):
    """Each forecast is made of the outputs that the plan names, with its weights: checked on the velocities kept."""
    from interspatial.models.cache.history import Track

    tiny = BY_NAME["wan"]
    model = attached(tiny.model(), cache(pace=("fixed", {"interval": 3}), first=2, last=1))
    plan = planned(model)
    forecasts, forecast = [], Track.forecast

    def listening(track, place, weigh, like=None):
        us = [places[0] for places in track.places]
        forecasts.append([(u, w) for u, w in zip(us, weigh[0](us, place[0]), strict=True) if w])
        return forecast(track, place, weigh, like)

    monkeypatch.setattr(Track, "forecast", listening)
    run(model, tiny, monkeypatch)
    expected = [[(plan.calls[i].sigma, w) for i, w in call.made_of] for call in plan.calls if call.does == "forecast"]
    assert forecasts == expected
    assert all(sum(w for _, w in parts) == pytest.approx(1.0) for parts in expected)


def test_reasons():
    plan = planned(attached(BY_NAME["wan"].model(), cache(pace=("fixed", {"interval": 3}), first=1, last=1)), steps=8)
    assert [(call.does, call.why) for call in plan.calls] == [
        ("run", "warm-up"), ("run", "too little kept yet"), ("forecast", ""), ("forecast", ""), ("run", "interval"),
        ("forecast", ""), ("forecast", ""), ("run", "tail")]  # fmt: skip
    step_cache = cache(pace=("fixed", {"interval": 2}), first=2, last=1)
    twice = planned(attached(BY_NAME["wan"].model(), step_cache), "heun", 5)
    assert [call.why for call in twice.calls] == ["warm-up"] * 4 + ["", "", "interval", "interval", "tail"]


@pytest.mark.parametrize(("given", "sampler", "steps", "why"), [
    ({}, "euler", 8, "a schedule of 8 steps has strides too long"),
    ({}, "dpm_adaptive", 20, "the sampler dpm_adaptive chooses its steps"),
    ({"first": 9, "last": 4}, "euler", 13, "the first 9 and the last 4 steps always run, which are all of 13"),
    ({"pace": ("fixed", {"interval": 1}), "first": 1}, "euler", 20, "the schedule runs every step"),
    ({"settings": {"order": 1}, "pace": ("fixed", {"interval": 9}), "first": 0, "last": 1}, "euler", 3,
     "too few outputs are kept")])  # fmt: skip
def test_why_nothing_is_left_out(given, sampler, steps, why, monkeypatch):
    tiny = BY_NAME["wan"]
    model = attached(tiny.model(), cache(**given))
    plan = planned(model, sampler, steps)
    assert why in plan.why and plan.saving == (0.0, 0.0)
    if sampler == "euler":
        assert not [does for *_, does in run(model, tiny, monkeypatch, steps=steps)[0] if does == "forecast"]


def test_few_steps_are_left_out_when_the_user_says_so(monkeypatch):
    from interspatial.models import host

    tiny = BY_NAME["wan"]
    for given in ({"first": 3}, {"pace": ("fixed", {"interval": 2})}):
        plan = planned(attached(tiny.model(), cache(**given)), steps=8)
        assert plan.why is None and plan.count("forecast")
    model = attached(tiny.model(), cache())
    assert run(model, tiny, monkeypatch, steps=8)[0] == []
    assert "0/8 steps, unpatched: a schedule of 8 steps has strides too long" in host.report_of(model)


FOLLOWED = ("euler", "euler_cfg_pp", "heun", "dpm_2", "seeds_2", "dpmpp_sde", "uni_pc_bh2", "ddim", "dpm_fast")


@pytest.mark.parametrize("sampler", FOLLOWED)
def test_the_calls_of_a_sampler(sampler, monkeypatch):
    """The sampler is followed on one number; the run calls the model at the same sigmas, to the last bit."""
    from interspatial.models.run import Run

    tiny, sigmas, begin = BY_NAME["wan"], [], Run.begin_call
    model = attached(tiny.model(), cache())
    plan = planned(model, sampler, 5)

    def noted(self, sigma):
        sigmas.append(sigma)
        begin(self, sigma)

    monkeypatch.setattr(Run, "begin_call", noted)
    run(model, tiny, monkeypatch, sampler, 5)
    assert [call.sigma for call in plan.calls] == sigmas


def test_a_sampler_that_cannot_be_followed():
    from interspatial.models.cache.plan import plans_of

    class Strange:
        @staticmethod
        def sampler_function():
            pass

        def sample(self, guider, *args):
            return guider.conds

    Strange.sampler_function.__name__ = "sample_euler"
    model = attached(BY_NAME["wan"].model(), cache(first=2))
    plan = plans_of(model, torch.linspace(1, 0, 14), Strange())[0]
    assert plan.ahead.assumed == "the sampler cannot be followed without a run (AttributeError)"
    assert [call.step for call in plan.calls] == list(range(13)) and plan.count("forecast")


def test_steps_that_are_reflected_run(monkeypatch):
    """W2SD Reflection: other roles are evaluated before such a step, so it is not forecast."""
    import comfy.sample
    import comfy.samplers
    from interspatial.models.cache.plan import plans_of
    from interspatial.models.guidance import CfgRoles, Reflection
    from interspatial.models.host.reflection import reflecting_sampler
    from interspatial.models.host.rehearsal import sigmas_of
    from interspatial.models.schedule import StepWindow

    tiny = BY_NAME["wan"]
    model = attached(tiny.model(), cache(pace=("fixed", {"interval": 3}), first=2, last=1))
    reflection = Reflection(StepWindow(3, 9, "steps"), every=4)
    sampler = reflecting_sampler(comfy.samplers.sampler_object("heun"), CfgRoles(3.0, 1.0), reflection)
    sigmas = sigmas_of(model, STEPS, "heun", "simple")
    plan = plans_of(model, sigmas, sampler)[0]
    assert {call.step for call in plan.calls if call.why == "reflected"} == {3, 7}
    seen, latent = listening(monkeypatch)[0], tiny.samples()
    with torch.inference_mode():
        comfy.sample.sample_custom(model, latent, 2.0, sampler, sigmas, tiny.prompt(1), tiny.prompt(1), latent, seed=3)
    assert calls_of(plan) == list(dict.fromkeys(seen))
