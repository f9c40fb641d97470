"""Every sampler of ComfyUI has a class, and the class is what the sampler does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.models.cache.samplers import NOISY, REFUSED, SMOOTH, sampler_class, why_refused


def function_of(name: str) -> str:
    import comfy.samplers

    return comfy.samplers.sampler_object(name).sampler_function.__name__


def test_every_sampler_of_the_menu_has_a_class(comfy):
    import comfy.samplers

    for name in comfy.samplers.SAMPLER_NAMES:
        assert sampler_class(function_of(name)) in ("smooth", "noisy", "refused"), name
        assert (why_refused(function_of(name)) is None) == (name not in REFUSED), name


def test_every_class_names_a_sampler(comfy):
    """A sampler that ComfyUI no longer has would stay in the table unseen."""
    from comfy.k_diffusion import sampling

    for name in (*SMOOTH, *NOISY, *REFUSED):
        assert name.startswith("unipc") or hasattr(sampling, f"sample_{name}"), name


def test_an_unknown_sampler_is_refused_with_its_name():
    assert sampler_class("sample_of_tomorrow") is None
    assert why_refused("sample_of_tomorrow") == "the sampler of_tomorrow is not known, so no step is left out"
    assert why_refused("") == "the sampler of this run is not known, so no step is left out"
    assert why_refused("sample_euler") is None
    assert "chooses its steps" in why_refused("dpm_adaptive_function")


class Toy:
    """What a sampler takes for the model: it answers half of the latent, with and without a prompt a little apart."""

    def __init__(self) -> None:
        from comfy import model_sampling

        class Sampling(model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST):
            pass

        sampling = Sampling()
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        inner = SimpleNamespace(model_sampling=sampling)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=inner)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: dict | None = None, **kwargs):
        found = {"denoised": 0.5 * x, "uncond_denoised": 0.4 * x, "cond_denoised": 0.5 * x}
        for function in (model_options or {}).get("sampler_post_cfg_function", ()):
            found["denoised"] = function(found)
        return found["denoised"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")   # ComfyUI's own
def test_noisy_samplers_add_noise_and_smooth_ones_do_not(comfy):
    """Two runs from one latent that differ in the seed alone."""
    import comfy.samplers

    start = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(5))
    sigmas = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.0])

    def run(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        sampler = comfy.samplers.sampler_object(name)
        extra = {"seed": seed, "model_options": {}}
        return sampler.sampler_function(Toy(), start.clone(), sigmas, extra_args=extra, callback=None, disable=True,
                                        **sampler.extra_options)  # fmt: skip

    for name in comfy.samplers.SAMPLER_NAMES:
        kind = sampler_class(function_of(name))
        if kind != "refused":
            assert torch.equal(run(name, 1), run(name, 2)) == (kind == "smooth"), name
