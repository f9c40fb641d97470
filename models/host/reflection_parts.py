"""The strong and the weak part of a reflection as evaluations inside a running sampler.

A part evaluates through a guider like the run's own, so wrappers, masks, context windows and patches of the model are
at work in it. It carries a role and the step it serves in its options, by which the pack's hooks keep it apart.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ..guidance import CfgRoles, LoraRoles, ModelRoles, PromptRoles, Roles
from .hooks import KEY, ROLE, ROLE_STEP
from .lora_switch import LoraSwitch
from .services import other_cache


@dataclass(frozen=True)
class SamplerCall:
    """What core hands to a sampler, with the sampler itself."""

    guider: Any
    sampler: Any
    sigmas: Tensor
    extra_args: dict
    noise: Tensor
    latent_image: Tensor | None
    denoise_mask: Tensor | None


@dataclass(frozen=True)
class Part:
    """One of the two that a reflection compares.

    options: model_options of its guider, None for those of the run
    during: () -> context in which it evaluates    evaluations: of the model, for one answer
    """

    role: str
    guider: Any
    evaluations: int
    options: dict | None = None
    during: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    def denoise(self, model, x: Tensor, sigma: Tensor, step: int, extra: dict) -> Tensor:
        """As the sampler's own call of `model`, but by this part. sigma: [B]    returns: denoised [B, ...]"""
        model = copy.copy(model)  # core's wrapper for masks, around another guider
        model.inner_model = self.guider
        options = self.options or extra["model_options"]
        marks = {**options.get("transformer_options", {}), ROLE: self.role, ROLE_STEP: step}
        with self.during():
            return model(x, sigma, **{**extra, "model_options": {**options, "transformer_options": marks}})


Body = Callable[[Part, Part], Tensor]


def evaluations(guider, options: dict) -> int:
    """Evaluations of the model for one answer of a guider with a single guidance strength; 1 for any other."""
    if not _single(guider) or guider.conds.get("negative") is None:
        return 1
    return 1 if math.isclose(guider.cfg, 1.0) and not options.get("disable_cfg1_optimization", False) else 2


def why_not(call: SamplerCall, roles: Roles) -> str | None:
    """Why these roles cannot be evaluated in this run, as a sentence; None when they can."""
    if cache := other_cache(call.guider.model_patcher):
        return f"{cache} is on the model, and would take the reflection's evaluations for steps of the run"
    return CHECKS[type(roles)](call, roles)


def with_parts(call: SamplerCall, roles: Roles, body: Body) -> Tensor:
    """body(strong, weak), while both can be evaluated."""
    return OPENERS[type(roles)](call, roles, body)


def _single(guider) -> bool:
    """True for a guider that is core's: one positive, one negative, one strength."""
    return type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise


def _own(call: SamplerCall, role: str, guider=None) -> Part:
    guider = call.guider if guider is None else guider
    return Part(role, guider, evaluations(guider, call.extra_args["model_options"]))


def _why_not_cfg(call: SamplerCall, roles: CfgRoles) -> str | None:
    if not _single(call.guider):
        return f"the guider {type(call.guider).__name__} has no single guidance strength"
    return "the guider has no negative prompt" if call.guider.conds.get("negative") is None else None


def _with_cfg(call: SamplerCall, roles: CfgRoles, body: Body) -> Tensor:
    def at(role: str, cfg: float) -> Part:
        guider = copy.copy(call.guider)
        guider.cfg = cfg
        return _own(call, role, guider)

    return body(at("strong", roles.strong or call.guider.cfg), at("weak", roles.weak))


def _why_not_prompt(call: SamplerCall, roles: PromptRoles) -> str | None:
    if not _single(call.guider):
        return f"the guider {type(call.guider).__name__} has prompts of its own kind"
    for cond in (*roles.weak, *(roles.strong or ())):
        if found := [key for key in ("control", "hooks", "gligen") if key in cond[1]]:
            return f"a prompt of the reflection carries {found[0]}, which core loads for the run's own prompts only"
    return None


def _with_prompt(call: SamplerCall, roles: PromptRoles, body: Body) -> Tensor:
    def at(role: str, prompt: list | None) -> Part:
        guider = copy.copy(call.guider)
        if prompt is not None:
            guider.conds = {**guider.conds, "positive": _processed(call, prompt)}
        return _own(call, role, guider)

    return body(at("strong", roles.strong), at("weak", roles.weak))


def _processed(call: SamplerCall, prompt: list) -> list[dict]:
    """A CONDITIONING as core prepares the run's own ones."""
    guider = call.guider
    packed = guider.conds["positive"][0].get("model_conds", {}).get("latent_shapes")
    shapes = [call.noise.shape] if packed is None else packed.cond
    conds = {"positive": comfy.sampler_helpers.convert_cond(prompt)}
    return comfy.samplers.process_conds(
        guider.inner_model, call.noise, conds, guider.model_patcher.load_device, call.latent_image, call.denoise_mask,
        call.extra_args.get("seed"), latent_shapes=shapes,
    )["positive"]  # fmt: skip


def _why_not_lora(call: SamplerCall, roles: LoraRoles) -> str | None:
    several = "multigpu_clones" in call.extra_args["model_options"]
    return "the model is spread over several GPUs, where a LoRA cannot be switched" if several else None


def _with_lora(call: SamplerCall, roles: LoraRoles, body: Body) -> Tensor:
    switch = LoraSwitch(call.guider.model_patcher, roles.weights, roles.name)
    own = evaluations(call.guider, call.extra_args["model_options"])
    return body(
        Part("strong", call.guider, own, during=lambda: switch.at(roles.strong)),
        Part("weak", call.guider, own, during=lambda: switch.at(roles.weak)),
    )


def _why_not_model(call: SamplerCall, roles: ModelRoles) -> str | None:
    if not _single(call.guider):
        return f"the guider {type(call.guider).__name__} cannot be made again for another model"
    if call.noise.ndim == 3:
        return "video with sound is one packed row here, which cannot be handed to another model"
    patchers = [call.guider.model_patcher, roles.weak, *([roles.strong] if roles.strong else [])]
    if any(a.is_clone(b) for i, a in enumerate(patchers) for b in patchers[:i]):
        return "two of the models are one loaded file with different patches: load it twice, or use the lora roles"
    return None


def _with_model(call: SamplerCall, roles: ModelRoles, body: Body) -> Tensor:
    """Each other MODEL gets a sampling run of its own around the rest, so it is loaded and prepared as core does it."""
    if roles.strong is None:
        return _beside(call, roles.weak, "weak", lambda weak: body(_own(call, "strong"), weak))
    return _beside(
        call, roles.strong, "strong",
        lambda strong: _beside(call, roles.weak, "weak", lambda weak: body(strong, weak)),
    )  # fmt: skip


def _beside(call: SamplerCall, model, role: str, then: Callable[[Part], Tensor]) -> Tensor:
    model = model.clone()
    model.set_additional_models(KEY, [call.guider.model_patcher])  # the run's own model stays loaded beside it
    guider = comfy.samplers.CFGGuider(model)
    guider.original_conds = call.guider.original_conds
    guider.set_cfg(call.guider.cfg)
    latent = call.latent_image
    if latent is not None and latent.any():
        latent = call.guider.inner_model.process_latent_out(latent)
    mask = None if call.denoise_mask is None else call.denoise_mask[:, :1]
    inside = _Inside(call.sampler, role, then)
    guider.sample(call.noise, latent, inside, call.sigmas, denoise_mask=mask, disable_pbar=True,
                  seed=call.extra_args.get("seed"))  # fmt: skip
    return inside.samples


class _Inside(comfy.samplers.Sampler):
    """Stands where core expects the sampler of the other model's run, and goes on with the first run from there."""

    def __init__(self, sampler, role: str, then: Callable[[Part], Tensor]) -> None:
        self.sampler_function, self.role, self.then = sampler.sampler_function, role, then
        self.samples: Tensor | None = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *rest, **kwargs) -> Tensor:
        options = extra_args["model_options"]
        self.samples = self.then(Part(self.role, model_wrap, evaluations(model_wrap, options), options))
        return noise


CHECKS = {CfgRoles: _why_not_cfg, PromptRoles: _why_not_prompt, LoraRoles: _why_not_lora, ModelRoles: _why_not_model}
OPENERS = {CfgRoles: _with_cfg, PromptRoles: _with_prompt, LoraRoles: _with_lora, ModelRoles: _with_model}
