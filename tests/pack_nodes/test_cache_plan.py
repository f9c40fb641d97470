"""Cache Plan as a node."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.cache_plan import CachePlan

    return CachePlan


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan"]


def cached(model, **settings):
    """The model with a TaylorSeer cache."""
    from interspatial.models import host
    from interspatial.models.cache import CACHES, StepCache
    from interspatial.models.report import Card

    return host.attach_step(model, Card("cache", "cache"), StepCache(CACHES["taylorseer"](), **settings))


def fixed(interval: int):
    from interspatial.models.cache import PACES

    return PACES["fixed"](interval)


def test_a_picture_and_a_report(node, tiny):
    from interspatial.models.host.rehearsal import sigmas_of

    model = cached(tiny.model(), pace=fixed(3), first=4, last=1)
    out = node.execute(model, steps=20, latent_image={"samples": tiny.samples()})
    picture, report = out.args
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.std() > 0.01
    lines = report.splitlines()
    assert lines[0] == "20 steps of euler, simple"
    assert "Fixed, interval 3; the first 4 and the last 1 of 20 steps always run" in lines
    assert "10 of 20 model calls are forecast" in lines
    assert "history: 2 outputs for each of 2 prompts, 0.1 MB" in lines
    two, three, four = sigmas_of(model, 20, "euler", "simple")[2:5].tolist()
    slope = (four - three) / (three - two)   # of the line through the last two runs
    assert f"    4  {four:.4f}  forecast from 2 ({-slope:+.2f}), 3 ({1 + slope:+.2f})" in lines
    assert next(line for line in lines if line.startswith("    6 ")).endswith("run: interval")
    assert set(out.ui) >= {"images", "text"}


def test_two_caches_are_both_listed(node, tiny):
    model = cached(cached(tiny.model(), first=3), first=6)
    report = node.execute(model).args[1]
    rows = [line for line in report.splitlines() if line.startswith("| TaylorSeer")]
    assert len(rows) == 2 and rows[0] != rows[1]


def test_given_sigmas_and_sampler_come_first(node, tiny):
    import comfy.samplers

    sigmas = torch.linspace(1, 0, 15)
    heun = comfy.samplers.sampler_object("heun")
    report = node.execute(cached(tiny.model()), steps=50, sigmas=sigmas, custom_sampler=heun).args[1]
    assert report.splitlines()[0] == "14 steps of heun, given sigmas"
    assert " 27 " in next(line for line in report.splitlines() if line.startswith("| TaylorSeer"))


def test_denoise_shortens_the_noise_range(node, tiny):
    report = node.execute(cached(tiny.model()), steps=10, denoise=0.5).args[1]
    assert "the first 2 and the last 2 of 10 steps always run" in report, "a schedule of 20, begun inside"


def test_a_sampler_that_no_cache_takes(node, tiny):
    import comfy.samplers

    sampler = comfy.samplers.sampler_object("dpm_adaptive")
    report = node.execute(cached(tiny.model()), custom_sampler=sampler).args[1]
    assert "no call can be left out: the sampler dpm_adaptive chooses its steps by the model's answers" in report
    assert "one model call a step is assumed" in report


def test_a_model_without_a_cache_says_what_to_do(node, tiny):
    with pytest.raises(ValueError, match=r"no Step Cache on it.*Connect the model output"):
        node.execute(tiny.model())


def test_a_schedule_without_a_step(node, tiny):
    with pytest.raises(ValueError, match=r"Cache Plan: a schedule has two sigmas or more.*has 1"):
        node.execute(cached(tiny.model()), sigmas=torch.ones(1))


def test_the_users_random_numbers_are_left_alone(node, tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    node.execute(cached(tiny.model()), sampler="dpmpp_2m_sde")
    assert torch.equal(torch.rand(3), expected)
