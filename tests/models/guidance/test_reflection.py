"""What a reflecting sampler hands to each of ComfyUI's samplers: on a toy field, against plain runs of the sampler."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.models.guidance import SAMPLERS, CfgRoles, Reflection, reflect
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.guidance.reflected import ALL, FIRST, wrapped


class Toy:
    """A guider around a nonlinear field, with core's own noise schedule of one kind."""

    def __init__(self, kind: str) -> None:
        import comfy.model_sampling as known

        class Flow(known.ModelSamplingDiscreteFlow, known.CONST):
            pass

        class Noise(known.ModelSamplingDiscrete, known.EPS):
            pass

        self.sampling = Flow() if kind == "flow" else Noise()
        self.inner_model = SimpleNamespace(model_sampling=self.sampling, scale_latent_inpaint=None)
        patcher = {"get_model_object": lambda name: self.sampling, "model": self, "model_options": {}}
        self.model_patcher = SimpleNamespace(**patcher)
        self.cfg, self.conds, self.calls = 2.0, {"positive": [], "negative": []}, []

    def predict_noise(self) -> None: ...

    def __call__(self, x, sigma, model_options=None, seed=None):
        options = model_options["transformer_options"]
        self.calls.append((options.get("interspatial_role"), float(sigma[0])))
        return torch.tanh(x * self.cfg * 0.3) + 0.01 * self.cfg


def toy_run(toy: Toy, sampler, sigmas, noise):
    extra = {"model_options": {"transformer_options": {}}, "seed": 3}
    return sampler.sample(toy, sigmas, extra, None, noise, torch.zeros_like(noise), None, True)


@pytest.fixture
def single(comfy, monkeypatch):
    """Toys pass for guiders with one guidance strength."""
    from interspatial.models.host import reflection_parts

    monkeypatch.setattr(reflection_parts, "_single", lambda guider: True)


@pytest.mark.parametrize("kind", ["flow", "noise"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_displacement_is_the_samplers_own_latent(single, name, kind):
    """Reflecting the first step is to start the plain sampler from the reflected latent: the same bits."""
    import comfy.samplers

    toy, plain = Toy(kind), comfy.samplers.sampler_object(name)
    sigmas = comfy.samplers.calculate_sigmas(toy.sampling, "simple", 5)
    noise = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    found = toy_run(toy, wrapped(CfgRoles(4.0, 1.0), FIRST, name), sigmas, noise)
    roles = [(role, sigma) for role, sigma in toy.calls if role]
    assert roles == [("strong", float(sigmas[0])), ("weak", float(sigmas[0]))]

    def at(cfg):
        return lambda x, sigma: torch.tanh(x * cfg * 0.3) + 0.01 * cfg

    start = toy.sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    moved = reflect(start, float(sigmas[0]), float(sigmas[1]), at(4.0), at(1.0))
    scaling, starts = toy.sampling.noise_scaling, [moved]  # some samplers scale their own noise too
    toy.sampling.noise_scaling = lambda *args: starts.pop() if starts else scaling(*args)
    assert torch.equal(found, toy_run(toy, plain, sigmas, noise))
    assert not torch.equal(moved, start)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_is_reflected_once_at_its_own_sigma(single, name):
    """Samplers of several calls a step, some of them already at the next sigma, are followed."""
    import comfy.samplers

    toy, plain = Toy("flow"), Toy("flow")
    sigmas = comfy.samplers.calculate_sigmas(toy.sampling, "simple", 5)
    noise = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    toy_run(toy, wrapped(CfgRoles(4.0, 1.0), ALL, name), sigmas, noise)
    toy_run(plain, comfy.samplers.sampler_object(name), sigmas, noise)
    assert [sigma for role, sigma in toy.calls if role == "strong"] == sigmas[:4].tolist()
    assert len(toy.calls) == len(plain.calls) + 2 * 4


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_a_run_is_reflections_and_single_steps(single, name):
    import comfy.samplers

    toy, sampler = Toy("flow"), comfy.samplers.sampler_object(name)
    sigmas = comfy.samplers.calculate_sigmas(toy.sampling, "simple", 6)
    noise = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    chosen = Reflection(StepWindow(0.0, 1.0), 0.7, every=2, label="new")
    found = toy_run(toy, wrapped(CfgRoles(4.0, 1.0), chosen, name), sigmas, noise)

    def at(cfg):
        return lambda x, sigma: torch.tanh(x * cfg * 0.3) + 0.01 * cfg

    x = noise.clone()
    for i in range(6):
        if i in (0, 2, 4):
            x = reflect(x, float(sigmas[i]), float(sigmas[i + 1]), at(4.0), at(1.0), 0.7, "new")
        extra = {"model_options": {"transformer_options": {}}}
        x = sampler.sampler_function(_Bare(toy), x, sigmas[i : i + 2], extra_args=extra, disable=True)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


class _Bare:
    def __init__(self, guider) -> None:
        self.inner_model = guider

    def __call__(self, x, sigma, **extra):
        return self.inner_model(x, sigma, **extra)


@pytest.mark.parametrize(("name", "reason"), [("uni_pc", "scaled copy"), ("euler_cfg_pp", "without a prompt"),
                                              ("dpm_adaptive", "sigmas of its own")])  # fmt: skip
def test_samplers_that_cannot_be_reflected_are_refused(comfy, name, reason):
    with pytest.raises(ValueError, match=reason):
        wrapped(CfgRoles(), ALL, name)


def test_a_sampler_is_wrapped_once(comfy):
    from interspatial.models import host

    with pytest.raises(ValueError, match="reflected once"):
        host.reflecting_sampler(wrapped(CfgRoles()), CfgRoles(), ALL)


def test_noise_before_an_evaluation_is_refused(comfy):
    import comfy.samplers
    from interspatial.models import host

    with pytest.raises(ValueError, match="s_churn"):
        host.reflecting_sampler(comfy.samplers.ksampler("euler", {"s_churn": 2.0}), CfgRoles(), ALL)
