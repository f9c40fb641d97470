"""Runs with a reflecting sampler, for tests."""

from __future__ import annotations

import torch
from interspatial.models.guidance import Reflection
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.tinies import BY_NAME

TINY = BY_NAME["wan"]
EMPTY, ALL = Reflection(StepWindow(0.0, 0.0)), Reflection(StepWindow(0.0, 1.0))
FIRST = Reflection(StepWindow(0.0, 1.0), every=100)  # the first step alone


def wrapped(roles, reflection=ALL, name="euler"):
    import comfy.samplers
    from interspatial.models import host

    return host.reflecting_sampler(comfy.samplers.sampler_object(name), roles, reflection)


def sample(model, sampler, tiny=TINY, steps=3, cfg=3.0, mask=None, latent=None, prompts=None):
    """A run of core's custom sampling; nested latents come as one flat tensor."""
    import comfy.sample
    import comfy.samplers

    latent = tiny.samples() if latent is None else latent
    positive, negative = prompts or (tiny.prompt(1), tiny.prompt(2))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, 5)
        out = comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latent,
                                         noise_mask=mask, disable_pbar=True, seed=5)  # fmt: skip
    return torch.cat([t.flatten() for t in out.unbind()]) if out.is_nested else out.clone()


class Watch:
    """A step method that notes role, step and call of every evaluation."""

    def __init__(self) -> None:
        self.seen: list = []

    def why_not(self, step) -> str:
        place = step.forward.position
        self.seen.append((step.role, place.step, place.call, len(step.forward.branches)))
        return "only watches"
