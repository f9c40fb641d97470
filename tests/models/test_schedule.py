"""Schedule, step windows and the tracker, alone and behind ComfyUI's own samplers."""

from __future__ import annotations

import pytest
from interspatial.models.report import Card
from interspatial.models.schedule import CALLS_PER_STEP, Position, Schedule, StepWindow, Tracker
from interspatial.tests.models.tinies import BY_NAME, sample

SHIFT = 8.0


def flow_sigma(percent: float) -> float:
    """percent_to_sigma of a flow model with Wan's shift."""
    t = 1.0 - percent
    return SHIFT * t / (1.0 + (SHIFT - 1.0) * t)


def flow_percent(sigma: float) -> float:
    """The closed-form inverse."""
    return 1.0 - sigma / (SHIFT - (SHIFT - 1.0) * sigma)


def schedule(steps: int = 4, **kwargs) -> Schedule:
    return Schedule([flow_sigma(i / steps) for i in range(steps + 1)], flow_sigma, **kwargs)


def places(sigmas, calls, sampler: str = "") -> list[tuple[int, int]]:
    tracker = Tracker(Schedule(sigmas, flow_sigma, sampler))
    return [(p.step, p.call) for p in map(tracker.locate, calls)]


# ---------------------------------------------------------------------------------------------- percent and windows

@pytest.mark.parametrize("percent", [0.0, 1e-4, 0.1, 0.37, 0.5, 0.9, 0.9999, 1.0])
def test_percent_of_inverts_sigma_at(percent):
    assert schedule().percent_of(flow_sigma(percent)) == pytest.approx(percent, abs=1e-9)
    assert flow_percent(flow_sigma(percent)) == pytest.approx(percent, abs=1e-9)


def test_percent_is_clamped_outside_the_models_range():
    discrete = Schedule([14.6, 1.0, 0.0], lambda p: 999999999.9 if p <= 0 else 0.0 if p >= 1 else 14.6 * (1 - p))
    assert discrete.percent_of(1e12) == 0.0
    assert discrete.percent_of(0.0) == 1.0
    assert discrete.percent_of(7.3) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("window", "inside"), [
    (StepWindow(), [0, 1, 2, 3]),
    (StepWindow(0.25, 0.5), [1, 2]),            # both ends included, as ComfyUI does
    (StepWindow(0.26, 0.74), [2]),
    (StepWindow(0.8, 1.0), []),                 # the last step runs at 75 %
    (StepWindow(0, 1, "steps"), [0]),
    (StepWindow(1, None, "steps"), [1, 2, 3]),
    (StepWindow(-1, None, "steps"), [3]),
    (StepWindow(1, -1, "steps"), [1, 2]),
])
def test_windows(window, inside):
    it = schedule()
    found = [s for s in range(4) if it.contains(window, Position(s, 4, 0, it.sigmas[s], s / 4))]
    assert found == inside
    assert it.count(window) == len(inside)


def test_percent_window_is_the_same_in_a_split_run():
    """KSamplerAdvanced from step 2 of 4, and img2img with denoise 0.5, hand over the second half of the sigmas."""
    half = Schedule(schedule().sigmas[2:], flow_sigma)
    assert half.count(StepWindow(0.0, 0.3)) == 0
    assert half.count(StepWindow(0.5, 1.0)) == 2
    assert half.count(StepWindow(0, 1, "steps")) == 1   # steps count within the run


@pytest.mark.parametrize(("arguments", "says"), [
    ((0.0, 1.0, "frames"), "percent or steps"),
    ((0.6, 0.4), "start before its end"),
    ((0.0, 20.0), "0 to 1"),
    ((0.5, None, "steps"), "whole numbers"),
])
def test_wrong_window_is_refused_with_a_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        StepWindow(*arguments)


# ---------------------------------------------------------------------------------------------- tracker alone

SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.0]


def test_one_call_per_step():
    assert places(SIGMAS, [1.0, 0.8, 0.5, 0.2]) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_first_sigma_a_little_below_the_schedule():
    """Samplers in log-SNR space move sigma 1 of flow models down a little."""
    assert places(SIGMAS, [0.9999, 0.9, 0.8]) == [(0, 0), (0, 1), (1, 0)]


def test_midpoint_calls_stay_in_their_step():
    assert places(SIGMAS, [1.0, 0.9, 0.8, 0.6, 0.5, 0.3, 0.2]) == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]


def test_heun_evaluates_each_sigma_twice():
    calls = [1.0, 0.8, 0.8, 0.5, 0.5, 0.2, 0.2]
    assert places(SIGMAS, calls, "sample_heun") == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    # a sampler nobody knows: half a step early, but never adrift
    assert places(SIGMAS, calls) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_restart_jumps_up():
    sigmas = [1.0, 0.6, 0.3, 0.7, 0.4, 0.6, 0.3, 0.0]   # 0.6 and 0.3 twice: order decides, not value
    assert places(sigmas, sigmas[:-1]) == [(i, 0) for i in range(7)]


def test_skipped_calls_are_caught_up():
    assert places(SIGMAS, [1.0, 0.5, 0.2]) == [(0, 0), (2, 0), (3, 0)]


def test_schedule_run_again_starts_again():
    """Frame-by-frame samplers walk the same sigmas for every block of frames."""
    assert places(SIGMAS, [1.0, 0.8, 0.5, 0.2, 1.0, 0.8])[4:] == [(0, 0), (1, 0)]


def test_foreign_sigma_goes_to_the_nearest_step():
    assert places(SIGMAS, [3.0]) == [(0, 0)]


# ---------------------------------------------------------------------------------------------- behind real samplers

class Witness:
    """A step method that notes where each evaluation was placed, and changes nothing."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []
        self.positions: list[Position] = []

    def why_not(self, step) -> str:
        position = step.forward.position
        self.positions.append(position)
        self.events.append(("call", position.step, position.call))
        return "a witness only looks"

    def truth(self) -> list[tuple[int, int]]:
        """Where the calls were, by the sampler's own callback: it fires once per step, after the step's first call."""
        starts = [i - 1 for i, event in enumerate(self.events) if event[0] == "callback"]
        found, step, call = [], -1, 0
        for i, event in enumerate(self.events):
            if event[0] == "callback":
                continue
            step, call = (step + 1, 0) if i in starts else (step, call + 1)
            found.append((step, call))
        return found


def witnessed(tiny, sampler: str, steps: int = 4, **kwargs) -> Witness:
    """Run a core sampler by name over a small latent."""
    import comfy.sample
    import torch
    from interspatial.models import host

    witness = Witness()
    model = host.attach_step(tiny.model(), Card("witness", "measure"), witness)
    latent = torch.zeros(1, 16, 2, 4, 4)
    with torch.inference_mode():
        comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, 1), steps, 1.0, sampler, "simple", tiny.prompt(1), tiny.prompt(2),
            latent, disable_pbar=True, callback=lambda i, x0, x, total: witness.events.append(("callback", i, 0)),
            seed=1, **kwargs)
    return witness


def core_samplers() -> list[str]:
    """KSampler's samplers but for the two with a schedule of their own; read late, ComfyUI may not be there."""
    import comfy.samplers

    return [name for name in comfy.samplers.SAMPLER_NAMES if name not in ("dpm_fast", "dpm_adaptive", "ar_video")]


@pytest.mark.parametrize("name", ["wan", "cogvideox"])   # a flow model and a discrete one
def test_every_core_sampler_is_placed_as_its_callback_says(comfy, name):
    wrong = {}
    for sampler in core_samplers():
        witness = witnessed(BY_NAME[name], sampler)
        found = [event[1:] for event in witness.events if event[0] == "call"]
        truth = [(i, 0) for i in range(4)] if sampler.startswith("uni_pc") else witness.truth()
        if found != truth:
            wrong[sampler] = (found, truth)
    assert not wrong


def test_known_samplers_exist(comfy):
    import comfy.k_diffusion.sampling

    assert all(hasattr(comfy.k_diffusion.sampling, name) for name in CALLS_PER_STEP)


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_samplers_with_their_own_schedule_move_forward(comfy, sampler):
    steps = [p.step for p in witnessed(BY_NAME["cogvideox"], sampler).positions]
    assert steps[0] == 0
    assert steps == sorted(steps)


def test_positions_carry_sigma_and_percent(comfy):
    positions = witnessed(BY_NAME["wan"], "euler").positions
    assert [p.steps for p in positions] == [4] * 4
    assert positions[0].sigma == pytest.approx(1.0)
    assert [p.percent for p in positions] == pytest.approx([flow_percent(p.sigma) for p in positions], abs=1e-6)


@pytest.mark.parametrize(("kwargs", "first"), [({"denoise": 0.5}, 0.4), ({"start_step": 2}, 0.4)])
def test_part_of_a_schedule_keeps_its_percent(comfy, kwargs, first):
    positions = witnessed(BY_NAME["wan"], "euler", **kwargs).positions
    assert positions[0].step == 0
    assert positions[0].percent >= first
    assert positions[-1].step == positions[-1].steps - 1


def test_split_run_with_heun_ends_in_its_last_step(comfy):
    positions = witnessed(BY_NAME["wan"], "heun", last_step=2).positions
    assert [(p.step, p.call) for p in positions] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_ancestral", "dpmpp_sde"])
def test_restarts_are_placed_by_order(comfy, sampler):
    """A schedule that jumps up and passes the same sigmas twice."""
    import torch

    witness = witnessed(BY_NAME["wan"], sampler, sigmas=torch.tensor([1.0, 0.6, 0.3, 0.7, 0.6, 0.3, 0.0]))
    assert [event[1:] for event in witness.events if event[0] == "call"] == witness.truth()
    assert witness.positions[-1].step == 5


def test_later_model_sampling_patch_counts(comfy):
    """A shift that is wired behind our node moves the percent window all the same."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from interspatial.models import host

    tiny, seen = BY_NAME["wan"], {}

    class Method(Witness):
        def why_not(self, step) -> str:
            seen[shift] = step.run.schedule.sigma_at(0.5)
            return "looks"

    model = host.attach_step(tiny.model(), Card("witness", "measure"), Method())
    for shift in (3.0, 12.0):
        sample(ModelSamplingSD3().patch(model, shift)[0], tiny, steps=1)
    assert seen == pytest.approx({shift: shift / (1 + shift) for shift in (3.0, 12.0)})
