"""First Block Cache: the first blocks decide about the rest, on tiny models."""

from __future__ import annotations

from itertools import pairwise
from threading import Thread

import pytest
import torch
from interspatial.models.cache import first_block
from interspatial.models.cache.first_block import Choice, FirstBlock, change
from interspatial.tests.models.cache.blocks import block_runs, cached, depth, error, report_of, still
from interspatial.tests.models.cache.test_delta_dit import FAMILIES
from interspatial.tests.models.tinies import BY_NAME, noise, sample
from interspatial.tests.models.tiny_dits import wan

WAN = BY_NAME["wan_odd"]
FULL = [0, 1, 2, 3, 4]
ALWAYS = {"threshold": 1e9, "max_skips": 0}
DEEPER = [name for name in FAMILIES if name != "mochi"]   # a single block has nothing behind it


@pytest.fixture
def deep(comfy):
    return wan(num_layers=5)


@pytest.mark.parametrize("name", DEEPER)
def test_threshold_zero_is_bit_equal(comfy, name):
    tiny = BY_NAME[name]
    model = cached(tiny.model(), FirstBlock(threshold=0.0))
    assert torch.equal(sample(model, tiny, steps=2, cfg=3.0), sample(tiny.model(), tiny, steps=2, cfg=3.0))
    assert "2/2 steps" in report_of(model)


@pytest.mark.parametrize("name", DEEPER)
def test_what_stands_still_is_forecast_as_it_is(comfy, name):
    """The same latent at the same noise in every step: no change, and what is kept of the rest is the true value."""
    tiny = BY_NAME[name]
    plain = still(tiny.model(), tiny, steps=1)[0]
    model, blocks = cached(tiny.model(), FirstBlock(threshold=1e-6)), depth(tiny.model())
    with block_runs(model) as forwards:
        outputs = still(model, tiny, steps=3)
    calls = len(forwards) // 3
    assert forwards == [list(range(blocks))] * calls + [[0]] * (2 * calls)
    assert all(error(output, plain) < 2e-5 for output in outputs)


def test_a_huge_threshold_skips_all_but_the_first(deep):
    model = cached(deep, FirstBlock(first_blocks=2, **ALWAYS))
    with block_runs(deep) as forwards:
        sample(model, WAN, steps=6)
    assert forwards == [FULL] + [[0, 1]] * 5
    assert "model calls 1 of 6" in report_of(model)
    assert "blocks 15 of 30" in report_of(model)


def test_first_steps_last_steps_and_skips_in_a_row(deep):
    model = cached(deep, FirstBlock(threshold=1e9, max_skips=2), first=2, last=1)
    with block_runs(deep) as forwards:
        sample(model, WAN, steps=9)
    assert [len(blocks) for blocks in forwards] == [5, 5, 1, 1, 5, 1, 1, 5, 5]


def test_the_first_evaluation_decides_for_the_call(deep, monkeypatch):
    """Prompts of unequal length run apart; the second one is not asked, and no sync is spent on it."""
    answers = [0.01, 0.5, 0.01]
    monkeypatch.setattr(first_block, "change", lambda now, before: answers.pop(0))
    prompts = WAN.prompt(1, 5), WAN.prompt(2, 7)
    model = cached(deep, FirstBlock())
    with block_runs(deep) as forwards:
        sample(model, WAN, steps=4, cfg=3.0, prompts=prompts)
    assert [len(blocks) for blocks in forwards] == [5, 5, 1, 1, 5, 5, 1, 1]
    assert not answers
    assert "model calls 4 of 8" in report_of(model)
    assert "changes 0.010 to 0.500" in report_of(model)


def test_prompts_together_and_apart(deep, monkeypatch):
    """The positive prompt's rows decide in a batch, so the decisions are the same ones."""
    import comfy.samplers

    changes: list[float] = []
    monkeypatch.setattr(first_block, "change", lambda now, before: changes.append(change(now, before)) or changes[-1])
    model = cached(deep, FirstBlock(threshold=0.09))
    together, first = sample(model, WAN, steps=6, cfg=3.0), changes.copy()
    assert 0 < sum(value < 0.09 for value in first) < len(first), "both answers occur"
    changes.clear()
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    apart = sample(model, WAN, steps=6, cfg=3.0)
    assert changes == pytest.approx(first, rel=1e-4)
    assert error(apart, together) < 1e-5


def test_a_step_with_another_role_runs(deep):
    """A sampler that evaluates the model beside the run's own evaluation in its fourth step."""
    import comfy.sample
    import comfy.samplers
    from interspatial.models.host import hooks

    def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            if step == 3:
                options = extra_args["model_options"]
                inner = {**options["transformer_options"], hooks.ROLE: "aside", hooks.ROLE_STEP: 3}
                model(x, sigma[None], **{**extra_args, "model_options": {**options, "transformer_options": inner}})
            x = x + (x - model(x, sigma[None], **extra_args)) / sigma * (after - sigma)
        return x

    model, latent = cached(deep, FirstBlock(**ALWAYS)), WAN.samples()
    with block_runs(deep) as forwards, torch.inference_mode():
        comfy.sample.sample_custom(
            model, noise(*latent.shape), 1.0, comfy.samplers.KSAMPLER(sample_euler), torch.linspace(1.0, 0.0, 7),
            WAN.prompt(1), WAN.prompt(2), latent, disable_pbar=True, seed=3)  # fmt: skip
    assert [len(blocks) for blocks in forwards] == [5, 1, 1, 5, 5, 1, 1]


def test_a_single_block_stands_aside(comfy):
    tiny = BY_NAME["mochi"]
    model = cached(tiny.model(), FirstBlock())
    sample(model, tiny)
    assert "no block lies behind the first one" in report_of(model)


def test_change_of_all_parts_together():
    now, before = (noise(1, 7, 5, seed=1), noise(1, 3, seed=2)), (noise(1, 7, 5, seed=3), noise(1, 3, seed=4))
    top = sum((a - b).double().abs().sum() for a, b in zip(now, before, strict=True))
    assert change(now, before) == pytest.approx(float(top / sum(b.double().abs().sum() for b in before)), rel=1e-5)
    nothing = (torch.zeros(2),)
    assert not change(nothing, nothing) < 1e9, "nothing to compare with: the model runs"


def test_other_threads_wait_for_the_answer():
    choice, seen = Choice(), []
    assert choice.claim(1)
    other = Thread(target=lambda: (choice.claim(1), seen.append(choice.around)))
    other.start()
    choice.around = True
    choice.made.set()
    other.join()
    assert seen == [True]
    assert choice.claim(2)
    assert not choice.around
