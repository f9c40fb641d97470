"""How patches are put on a MODEL and how a run finds them.

Everything that changes is made when sampling starts and dropped when it ends. On the model itself lie only frozen
things: the patches, the attention chain, and four wrappers that are the same for every patch and added once.

    OUTER_SAMPLE    a Run is born, put into the options of this run, dropped in `finally`
    PREDICT_NOISE   one sampler call: its place in the schedule
    APPLY_MODEL     one forward: which tokens to expect; then the step methods, then the model
    attention slot  `chain.AttentionChain`
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..families import Inputs, bare, family_of
from ..forward import Branch, Forward
from ..report import Card, Report, Tally, log
from ..run import Run
from ..schedule import Schedule
from .chain import FORWARD, RUN, AttentionChain
from .services import cache_in, is_flow, model_sampling, show_text

# Kinds of patches, outermost first: what measures sees everything below it, what steers adds to what saves time, what
# a cache runs may run with fewer parts, and a number format serves all of them.
KINDS = ("measure", "control", "guidance", "window", "cache", "dynamic", "sparse", "quant")

State = TypeVar("State")

KEY = "interspatial"
PATCHES = "interspatial_patches"
LAST = "interspatial_last"
ATTENTION = "optimized_attention_override"
COMPILE = "torch.compile"   # key of the wrapper that core's compile node adds
ROLE = "interspatial_role"   # an evaluation beside the run's own, such as a reflection's: a name, in the options
ROLE_STEP = "interspatial_role_step"   # beside ROLE: the step that such an evaluation serves


@dataclass(eq=False)
class LastReport:
    """Text of the last finished run; the only thing on a model that changes, and it holds no tensor.

    Each attached patch brings a new one, so clones with other patches do not write into it; clones that other nodes
    make (a LoRA, a shift) share it.
    """

    text: str = ""


@dataclass(frozen=True, eq=False)
class Patch:
    """A method with its card, as it lies on a model. Compared by identity: the same node twice is two patches."""

    card: Card
    method: Any
    hook: str
    node_id: str | None = None


@dataclass(frozen=True)
class StepCall:
    """One evaluation of the model, offered to a step method.

    x: what the sampler gave
    forward, run: as in `call.AttentionCall`
    model: the diffusion model, without the wrapper of torch.compile
    compiled: torch.compile is at work on this model, as a whole or in parts
    shapes: of the latents that are packed into one row of x, as for video with sound; else of x alone
    options: transformer_options of the evaluation, to be read
    proceed: () -> the denoised output of the evaluation, as if the method were not there
    """

    x: Tensor
    forward: Forward
    run: Run
    model: nn.Module
    compiled: bool
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any]
    owner: Patch
    tally: Tally
    proceed: Callable[[], Tensor]

    @property
    def place(self) -> Hashable:
        """Latent shape, device and window: what may differ between evaluations of one sampler call."""
        return tuple(self.x.shape[1:]), str(self.x.device), self.forward.window

    @property
    def role(self) -> str | None:
        """Name of the part in which the model is evaluated beside the run's own evaluations; None for those."""
        return self.options.get(ROLE)

    @property
    def other_cache(self) -> str | None:
        """The name of a step cache of ComfyUI's own that is at work in this run, None without one."""
        return cache_in(self.options)

    def state(self, branch: Branch | None, factory: Callable[[], State], kind: str = "") -> State:
        """What this method keeps for this branch (None: for all of them) and `place` until the run ends.

        kind: tells several things that a method keeps apart
        """
        return self.run.state((self.owner, kind), branch and branch.id, -1, self.place, self.forward.window, factory)

    def say(self, name: str, text: str) -> None:
        """A fact for the report's line: `step.say("history", "12 MB")`."""
        self.run.report.say(self.tally, name, text)


def attach_attention(model, card: Card, method, node_id: str | None = None):
    """A clone of `model` whose video self attention is offered to `method`.

    method: `why_not(call) -> str | None` and `attend(call) -> Tensor [B, N, H, D]`; see `call.AttentionCall`
    node_id: where the summary is shown after a run
    """
    model, patch = _attach(model, Patch(card, method, "attention", node_id))
    options = model.model_options["transformer_options"]
    found = options.get(ATTENTION)
    chain = found if isinstance(found, AttentionChain) else AttentionChain(previous=found)
    options[ATTENTION] = chain.with_method(patch, _order)
    return model


def attach_step(model, card: Card, method, node_id: str | None = None):
    """A clone of `model` whose evaluations are offered to `method`: `why_not(step)` and `evaluate(step) -> Tensor`."""
    return _attach(model, Patch(card, method, "step", node_id))[0]


def patches_of(model) -> tuple[Patch, ...]:
    """The patches on a MODEL, outermost first."""
    return model.model_options.get("transformer_options", {}).get(PATCHES, ())


def report_of(model) -> str:
    """What the patches of a MODEL did in its last finished run, "" before the first."""
    return model.model_options.get("transformer_options", {}).get(LAST, LastReport()).text


def _order(patch: Patch) -> int:
    return KINDS.index(patch.card.kind)


def _attach(model, patch: Patch):
    if patch.card.kind not in KINDS:
        raise ValueError(f"A patch cannot be of kind {patch.card.kind!r}. Accepted: {', '.join(KINDS)}.")
    model = model.clone()
    options = model.model_options.setdefault("transformer_options", {})
    options[LAST] = LastReport()
    options[PATCHES] = tuple(sorted((patch, *options.get(PATCHES, ())), key=_order))   # a tuple: never shared by edit
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _outer_sample), (WrappersMP.PREDICT_NOISE, _predict_noise),
        (WrappersMP.APPLY_MODEL, _apply_model),
    ):
        if wrapper not in model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)
    return model, patch


def _outer_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    patches = options.get(PATCHES, ())
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    sampling = model_sampling(guider.model_patcher)
    run = Run(Schedule(sigmas.tolist(), sampling.percent_to_sigma, name, is_flow(sampling)), Report())
    for patch in patches:
        run.report.tally(patch, patch.card)
    options[RUN] = run   # these options are the run's own copy and end with it
    if "torch._dynamo" in sys.modules and ATTENTION in options:
        # Some model here may be compiled: one clean graph break per attention, instead of traces of our bookkeeping.
        options[ATTENTION] = torch.compiler.disable(options[ATTENTION])
    try:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    except BaseException as error:
        run.report.ended = type(error).__name__
        raise
    finally:
        run.close()
        _publish(patches, run.report, options[LAST])


def _publish(patches: tuple[Patch, ...], report: Report, last: LastReport) -> None:
    last.text = report.text()
    for line in last.text.splitlines():
        log.info(line)
    for patch in patches:
        show_text(report.tallies[patch].line(), patch.node_id)


def _predict_noise(executor, x, timestep, model_options=None, *args, **kwargs):
    run = executor.class_obj.model_options["transformer_options"].get(RUN)
    options = (model_options or {}).get("transformer_options", {})
    if run is not None and ROLE in options:
        run.begin_aside(options[ROLE_STEP])
    elif run is not None:
        run.begin_call(float(timestep.flatten()[0]))
    return executor(x, timestep, model_options or {}, *args, **kwargs)


def _apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    options = transformer_options or {}
    run = options.get(RUN)
    if run is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    conds = {**kwargs, "c_concat": c_concat, "c_crossattn": c_crossattn}
    model = bare(executor.class_obj.diffusion_model)
    forward = _forward(model, run, x, conds, options)
    options = {**options, FORWARD: forward}
    if isinstance(forward.expected, str):
        for patch in options.get(PATCHES, ()):
            if patch.hook == "attention":
                run.report.aside(run.report.tally(patch, patch.card), forward.expected, None, run.step)

    def proceed() -> Tensor:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    about = {"x": x, "forward": forward, "run": run, "model": model, "options": options,
             "shapes": tuple(tuple(shape) for shape in kwargs.get("latent_shapes") or (x.shape,)),
             "compiled": COMPILE in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})}
    for patch in reversed([patch for patch in options.get(PATCHES, ()) if patch.hook == "step"]):
        proceed = _step(patch, about, run, proceed)
    return proceed()


def _step(patch: Patch, about: dict, run: Run, proceed: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def evaluate() -> Tensor:
        tally = run.report.tally(patch, patch.card)
        step = StepCall(**about, owner=patch, tally=tally, proceed=proceed)
        reason = patch.method.why_not(step)
        if reason is not None:
            run.report.aside(tally, reason, None, run.step)
            return proceed()
        run.report.ran(tally, None, run.step)
        return patch.method.evaluate(step)

    return evaluate


def _forward(model, run: Run, x: Tensor, conds: dict, options: dict) -> Forward:
    """Look at what this forward receives. Reads shapes only: no tensor is touched, nothing waits for the device."""
    shapes = [tuple(shape) for shape in conds.get("latent_shapes") or (x.shape,)]
    video = shapes[0] if len(shapes[0]) == 5 else (*shapes[0][:2], 1, *shapes[0][2:])
    text = conds["c_crossattn"].shape[1] if conds["c_crossattn"] is not None else 0
    window = getattr(options.get("context_window"), "index_list", None)
    window = None if window is None else tuple(window)
    family = family_of(model)
    common = {"batch": x.shape[0], "position": run.position, "window": window,
              "branches": _branches(run, x.shape[0], options, window)}
    if family is None:
        return Forward(None, f"{type(model).__name__} is not a model this pack knows", **common)
    common["frames"] = video[2] if family.frames_in_batch else 1
    inputs = Inputs(model, video, text, shapes[1] if len(shapes) > 1 else None, conds, options)
    try:
        found = {"expected": family.expect(inputs), "others": family.others(inputs), "stacks": family.stacks(model),
                 "whole": family.unskippable(inputs)}
    except Exception as error:   # a model that another ComfyUI has changed must not end the render, only our part in it
        found = {"expected": f"the tokens of {family.name} could not be told ({type(error).__name__}: {error})"}
    return Forward(family, **found, **common)


def _branches(run: Run, batch: int, options: dict, window) -> tuple[Branch, ...]:
    conds = options.get("cond_or_uncond") or [0]
    ids = options.get("uuids") or conds
    rows, role = batch // len(conds), options.get(ROLE)
    return tuple(
        Branch((name, role, run.visit((name, role), window)), cond, slice(i * rows, (i + 1) * rows))
        for i, (name, cond) in enumerate(zip(ids, conds, strict=True))
    )
