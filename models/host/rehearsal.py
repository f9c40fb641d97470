"""A run before it runs: its schedule, and the sigma of every model call, without the model.

The sampler itself is followed on a latent of one number and a model that answers zero. What it asks for does not depend
on the answers, but for the few samplers that choose their own steps; those are not followed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..families import Family, bare
from ..schedule import Schedule
from .hooks import COMPILE
from .reflection import ReflectingSampler
from .services import family_of_model, is_flow, model_sampling

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ahead:
    """A run to come.

    schedule: as the run will have it
    calls: sigma of each model call, in order
    assumed: why `calls` is one for each step instead of the sampler's own, None where the sampler was followed
    reflected: steps before which other roles of the model are evaluated; these calls are not among `calls`
    family, network, compiled: as in `StepCall`; network is its model
    shapes: of the latents, the video first; empty when nobody said
    item: bytes of one number of the hidden states
    """

    schedule: Schedule
    calls: tuple[float, ...]
    assumed: str | None
    reflected: frozenset[int]
    family: Family | None
    network: nn.Module
    compiled: bool
    shapes: tuple[Shape, ...]
    item: int


def sigmas_of(model, steps: int, sampler: str, scheduler: str, denoise: float = 1.0) -> Tensor:
    """The schedule of core's KSampler with these settings, [steps + 1]."""
    return comfy.samplers.KSampler(model, steps, "cpu", sampler, scheduler, denoise).sigmas


def look_ahead(model, sigmas: Tensor, sampler, followed: bool, latent: dict | None = None) -> Ahead:
    """What a run of a MODEL will be.

    sampler: a name of core's, or a SAMPLER
    followed: False for a sampler whose calls cannot be told, so that it is not asked
    latent: a LATENT of ComfyUI
    """
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    sampling = model_sampling(model)
    schedule = Schedule(sigmas.tolist(), sampling.percent_to_sigma, function_of(sampler), is_flow(sampling))
    reflected: frozenset[int] = frozenset()
    if isinstance(sampler, ReflectingSampler):
        if sampler.reflection.why_not(schedule) is None:
            reflected = frozenset(sampler.reflection.steps(schedule))
        sampler = sampler.inner
    calls, assumed = _follow(model, sampling, sigmas, sampler) if followed else (None, "the sampler was not followed")
    return Ahead(
        schedule, schedule.sigmas[: schedule.steps] if calls is None else calls, assumed, reflected,
        family_of_model(model),
        bare(model.get_model_object("diffusion_model")),
        bool(model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE)),
        () if latent is None else _shapes(model, latent),
        torch.empty(0, dtype=model.model.get_dtype_inference()).element_size(),
    )  # fmt: skip


def function_of(sampler) -> str:
    """Name of the function of a sampler, given as in `look_ahead`; "" when unknown."""
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


class _Listener:
    """In the place of a guider: notes the sigma of each call and answers zero."""

    cfg = 1.0

    def __init__(self, model, sampling) -> None:
        self.model_patcher = model
        self.inner_model = nn.Module()
        self.inner_model.model_sampling = sampling
        self.calls: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict, seed=None) -> Tensor:
        self.calls.append(float(sigma.flatten()[0]))
        zero = torch.zeros_like(x)
        # samplers of the cfg_pp kind read the unconditional answer there
        for listen in model_options.get("sampler_post_cfg_function", ()):
            zero = listen({"denoised": zero, "cond_denoised": zero, "uncond_denoised": zero, "input": x,
                           "sigma": sigma, "model": self.inner_model, "model_options": model_options})  # fmt: skip
        return zero


def _follow(model, sampling, sigmas: Tensor, sampler) -> tuple[tuple[float, ...] | None, str | None]:
    """The sigmas of the calls, or None and why they could not be told."""
    listener, one = _Listener(model, sampling), torch.zeros(1, 1, 1, 1, 1)
    # samplers draw noise by a seed of their own, or from torch's generator, which belongs to the user
    state = torch.random.get_rng_state()
    try:
        sampler.sample(listener, sigmas.cpu(), {"model_options": {}, "seed": 0}, None, one, one.clone(), None, True)
    except Exception as error:   # a sampler of another pack may want a whole guider
        logging.getLogger("interspatial").info("the sampler could not be followed: %s: %s", type(error).__name__, error)
        return None, f"the sampler cannot be followed without a run ({type(error).__name__})"
    finally:
        torch.random.set_rng_state(state)
    return tuple(listener.calls), None


def _shapes(model, latent: dict) -> tuple[Shape, ...]:
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    return tuple(tuple(part.shape) for part in (samples.unbind() if samples.is_nested else [samples]))
