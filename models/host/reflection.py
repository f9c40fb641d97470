"""A SAMPLER that reflects before the steps of another one.

The wrapped sampler runs as it is: same loop, noise, callbacks. What is wrapped is the model that it calls. At the first
call of a reflected step the displacement is written into the very tensor that the sampler hands over, which is its own
latent, and the call goes on with that. `models.guidance.samplers` lists the samplers for which this holds.
"""

from __future__ import annotations

import functools

import comfy.samplers
import torch
from torch import Tensor

from ..guidance import Reflection, Roles, cost, reflect, why_refused
from ..report import log
from ..schedule import Schedule, Tracker
from .reflection_parts import Part, SamplerCall, evaluations, with_parts
from .reflection_parts import why_not as why_no_parts
from .services import check_interrupt, is_flow, model_sampling, show_text

NAME = "W2SD Reflection"


def reflecting_sampler(sampler, roles: Roles, reflection: Reflection, node_id: str | None = None) -> ReflectingSampler:
    """`sampler` with a reflection before its steps.

    raises: ValueError for a SAMPLER that cannot be reflected
    """
    if type(sampler) is not comfy.samplers.KSAMPLER:
        raise ValueError(
            f"{NAME}: this SAMPLER is of the kind {type(sampler).__name__}. Accepted: a sampler of ComfyUI's own "
            "kind, such as KSamplerSelect gives, reflected once."
        )
    if reason := why_refused(getattr(sampler.sampler_function, "__name__", "")):
        raise ValueError(f"{NAME}: {reason}. Accepted: euler, dpmpp_2m, res_multistep and most others; see the help.")
    if sampler.extra_options.get("s_churn"):
        raise ValueError(f"{NAME}: s_churn adds noise before each evaluation, after the reflection. Set it to 0.")
    return ReflectingSampler(sampler, roles, reflection, node_id)


class ReflectingSampler(comfy.samplers.Sampler):
    def __init__(self, inner: comfy.samplers.KSAMPLER, roles: Roles, reflection: Reflection, node_id: str | None):
        self.inner, self.roles, self.reflection, self.node_id = inner, roles, reflection, node_id
        self.sampler_function = inner.sampler_function  # by its name, patches of the model know the sampler

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):  # fmt: skip
        sampling = model_sampling(model_wrap.model_patcher)
        name = getattr(self.sampler_function, "__name__", "")
        schedule = Schedule(sigmas.tolist(), sampling.percent_to_sigma, name, is_flow(sampling))
        call = SamplerCall(model_wrap, self.inner, sigmas, extra_args, noise, latent_image, denoise_mask)

        def run(parts: tuple[Part, Part] | None) -> Tensor:
            function = self.sampler_function
            if parts is not None:
                function = self._reflected(schedule, parts)
            sampler = comfy.samplers.KSAMPLER(function, self.inner.extra_options, self.inner.inpaint_options)
            return sampler.sample(
                model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            )

        reason = self.reflection.why_not(schedule) or why_no_parts(call, self.roles)
        if reason is not None:
            self._say(f"not reflected: {reason}")
            return run(None)
        return with_parts(call, self.roles, lambda *parts: self._announced(schedule, call, parts, run))

    def _announced(self, schedule: Schedule, call: SamplerCall, parts: tuple[Part, Part], run) -> Tensor:
        reflected = len(self.reflection.steps(schedule))
        own = evaluations(call.guider, call.extra_args["model_options"])
        self._say(cost(schedule, reflected, own, *(part.evaluations for part in parts)))
        return run(parts)

    def _reflected(self, schedule: Schedule, parts: tuple[Part, Part]):
        @functools.wraps(self.sampler_function)
        def function(model, x, sigmas, **rest):
            return self.sampler_function(Reflecting(model, schedule, self.reflection, parts), x, sigmas, **rest)

        return function

    def _say(self, text: str) -> None:
        log.info(f"{NAME}: {text}")
        show_text(text, self.node_id)


class Reflecting:
    """The model as a sampler calls it; all but the call itself is that of the model."""

    def __init__(self, model, schedule: Schedule, reflection: Reflection, parts: tuple[Part, Part]) -> None:
        self._model, self._schedule, self._reflection, self._parts = model, schedule, reflection, parts
        self._steps = frozenset(reflection.steps(schedule))
        self._tracker = Tracker(schedule)

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **extra) -> Tensor:
        place = self._tracker.locate(float(sigma.flatten()[0]))
        if place.call == 0 and place.step in self._steps:
            x.copy_(self._moved(x, place.step, extra))
        return self._model(x, sigma, **extra)

    def _moved(self, x: Tensor, step: int, extra: dict) -> Tensor:
        strong, weak = (functools.partial(self._evaluate, part, step, extra) for part in self._parts)
        chosen, sigmas = self._reflection, self._schedule.sigmas
        moved = reflect(x, sigmas[step], sigmas[step + 1], strong, weak, chosen.strength, chosen.label)
        mask = extra.get("denoise_mask")
        return moved if mask is None else torch.lerp(x, moved, mask.to(x.dtype))

    def _evaluate(self, part: Part, step: int, extra: dict, x: Tensor, sigma: float) -> Tensor:
        check_interrupt()
        return part.denoise(self._model, x, x.new_full((x.shape[0],), sigma), step, extra)
