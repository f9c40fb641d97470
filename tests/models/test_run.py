"""Run: state by key, born and dropped with the run, never shared between runs, prompts, resolutions or patches."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from interspatial.models.layout import arrange
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from interspatial.tests.models.tinies import BY_NAME, sample

CARD = Card("keeper", "sparse")


def new_run() -> Run:
    return Run(Schedule([1.0, 0.5, 0.0], lambda p: 1.0 - p), Report())


KEY = {"kind": "a", "branch": "prompt", "layer": 3, "layout": arrange([("video", (3, 4, 6))]).key, "window": None}


@pytest.mark.parametrize("change", [
    {"kind": "b"}, {"branch": "other"}, {"layer": 4}, {"layout": arrange([("video", (3, 6, 4))]).key},
    {"window": (0, 1)},
], ids=lambda change: next(iter(change)))
def test_state_is_one_per_key(change):
    run = new_run()
    state = run.state(**KEY, factory=list)
    assert run.state(**KEY, factory=list) is state
    assert run.state(**{**KEY, **change}, factory=list) is not state
    assert len(run) == 2


def test_close_frees_what_was_kept():
    run = new_run()
    state = run.state(**KEY, factory=lambda: {"kept": torch.zeros(3)})
    alive = weakref.ref(state["kept"])
    del state
    gc.collect()
    assert alive() is not None
    run.close()
    gc.collect()
    assert alive() is None


def test_a_deep_copy_of_the_options_keeps_the_run():
    run = new_run()
    assert copy.deepcopy({"options": {"run": run}})["options"]["run"] is run


def test_threads_make_one_state():
    run, made, barrier = new_run(), [], threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        run.state(**KEY, factory=lambda: made.append(1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_visits_count_within_a_sampler_call():
    run = new_run()
    assert [run.visit("p", None) for _ in range(2)] == [0, 0], "without sampler calls nothing can be told apart"
    run.begin_call(1.0)
    assert [run.visit("p", None), run.visit("p", (0, 1)), run.visit("n", None), run.visit("p", None)] == [0, 0, 0, 1]
    run.begin_call(0.5)
    assert run.visit("p", None) == 0
    assert (run.step, run.calls) == (1, 2)


# ------------------------------------------------------------------------------------------- through the sampler

class Keeper:
    """Keeps a growing list per branch and layer, and every run it has seen."""

    def __init__(self) -> None:
        self.states: dict[int, list] = {}    # by identity of the state object
        self.alive: list = []                # keeps identities unique
        self.runs: list[Run] = []
        self.branches: set = set()
        self.grids: set = set()

    def why_not(self, call) -> str:
        if call.run not in self.runs:
            self.runs.append(call.run)
        for branch in call.branches:
            state = call.state(branch, list)
            if id(state) not in self.states:
                self.alive.append(state)
            state.append(call.forward.position.step)
            self.states[id(state)] = state
            self.branches.add(branch.id)
        self.grids.add(call.layout.grid)
        return "it only keeps"


def kept(name: str = "wan", keeper: Keeper | None = None, **kwargs):
    from interspatial.models import host

    tiny, keeper = BY_NAME[name], keeper or Keeper()
    model = host.attach_attention(tiny.model(), CARD, keeper)
    return model, keeper, tiny


def test_state_lives_through_a_run_by_prompt_and_layer(comfy):
    model, keeper, tiny = kept()
    sample(model, tiny, cfg=3.0, steps=3)
    assert len(keeper.states) == 2 * 2, "two prompts, two layers"
    assert all(state == [0, 1, 2] for state in keeper.states.values()), "the same in every step"
    assert len(keeper.branches) == 2


def test_batched_and_separate_prompts_are_the_same_branches(comfy):
    """Unequal prompts run in two calls, equal ones in one: a branch is a prompt either way."""
    model, keeper, tiny = kept()
    sample(model, tiny, cfg=3.0, steps=3, prompts=(tiny.prompt(1, 7), tiny.prompt(2, 9)))
    assert len(keeper.states) == 4
    assert all(state == [0, 1, 2] for state in keeper.states.values())


def test_combined_prompts_do_not_share(comfy):
    model, keeper, tiny = kept()
    sample(model, tiny, cfg=3.0, prompts=(tiny.prompt(1) + tiny.prompt(4), tiny.prompt(2)))
    assert len(keeper.branches) == 3
    assert all(state == [0, 1] for state in keeper.states.values())


def test_two_runs_never_share(comfy):
    model, keeper, tiny = kept()
    first, second = sample(model, tiny), sample(model, tiny)
    assert torch.equal(first, second)
    assert len(keeper.runs) == 2
    assert len(keeper.states) == 2 * 2
    assert all(state == [0, 1] for state in keeper.states.values())


def test_two_resolutions_never_share(comfy):
    """One run over two grids, as area prompts make them."""
    model, keeper, tiny = kept()
    left, right = tiny.prompt(1), tiny.prompt(4)
    left[0][1]["area"], right[0][1]["area"] = (3, 8, 6, 0, 0, 0), (3, 8, 12, 0, 0, 0)
    sample(model, tiny, prompts=(left + right, tiny.prompt(2)))
    assert keeper.grids == {(3, 4, 3), (3, 4, 6)}
    assert len(keeper.states) == 2 * 2


def test_second_evaluation_of_a_prompt_has_state_of_its_own(comfy):
    """Guidance by skipped layers evaluates the positive prompt again in the same sampler call."""
    import comfy.samplers

    model, keeper, tiny = kept()

    def again(args):
        comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"])
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(again)
    sample(model, tiny, steps=3)
    assert len(keeper.states) == 2 * 2
    assert all(state == [0, 1, 2] for state in keeper.states.values())


@pytest.mark.parametrize("kind", ["exception", "interrupt", "none"])
def test_state_is_dropped_however_the_run_ends(comfy, kind):
    import comfy.model_management
    from interspatial.models import host

    error = {"exception": RuntimeError, "interrupt": comfy.model_management.InterruptProcessingException}.get(kind)

    class Fails(Keeper):
        def why_not(self, call) -> str:
            super().why_not(call)
            assert len(self.runs[0]) > 0
            if error and call.forward.position.step == 1:
                raise error()
            return "it only keeps"

    model, keeper, tiny = kept(keeper=Fails())
    if error:
        with pytest.raises(error):
            sample(model, tiny)
        assert host.report_of(model).endswith(f"the run ended early: {error.__name__}")
    else:
        sample(model, tiny)
        assert "ended early" not in host.report_of(model)
    assert len(keeper.runs[0]) == 0
    assert not any("run" in key for key in model.model_options["transformer_options"])


def test_a_run_within_a_run_of_the_same_model(comfy):
    """Two guiders sample the same patched model, one inside a step of the other."""
    import comfy.sample
    import comfy.samplers

    model, keeper, tiny = kept()
    latent = torch.zeros(1, 16, 3, 8, 12)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)

    def guided(callback=None):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(tiny.prompt(1), tiny.prompt(2))
        euler, noise = comfy.samplers.sampler_object("euler"), comfy.sample.prepare_noise(latent, 1)
        return guider.sample(noise, latent, euler, sigmas, callback=callback, disable_pbar=True, seed=1)

    def nest(step, x0, x, total) -> None:
        if step == 1:
            patcher = model.model.current_patcher
            inner.append(guided())
            model.model.current_patcher = patcher   # ComfyUI itself forgets the outer run here

    inner: list = []
    with torch.inference_mode():
        outer = guided(nest)
        alone = guided()
    assert torch.equal(outer, alone)
    assert torch.equal(inner[0], alone)
    assert len(keeper.runs) == 3
    assert all(state == [0, 1, 2] for state in keeper.states.values())
    assert len(keeper.states) == 3 * 2


def test_nothing_keeps_a_finished_run_alive(comfy):
    model, keeper, tiny = kept()
    sample(model, tiny)
    alive = weakref.ref(keeper.runs[0])
    keeper.runs.clear()
    gc.collect()
    assert alive() is None
