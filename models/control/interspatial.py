"""Bodies and cameras on a MODEL: a step method that lets an adapter look into each evaluation.

The adapter covers the blocks first, so everything that covers them later (a step cache, a router) contains it: a cache
at the last block keeps the stream with what the adapter added, one that goes around blocks keeps their difference with
it, and one of single modules leaves the adapter live.

Source: ISA4D (2505.15800) for interspatial attention; the adapter for other models is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..block_visits import blocks_of, visiting_blocks
from ..families import Family
from ..nets.interspatial_adapter import AdapterConfig, Fixed, InterspatialAdapter
from ..nets.point_tokens import Points
from ..schedule import WHOLE, StepWindow
from .adapter_visit import Listener, Visitor, chosen_layers, rows_kept, width_of
from .body import BodyTrack
from .camera import CameraPath
from .clip_fit import Clip, ClipTokens, Fit, tokens_of_clip

if TYPE_CHECKING:
    from ..host import StepCall

UNCONDS = ("same", "drop")
STRETCHED = Fit()
TIME = 2  # axis of a video latent
TIMESTEPS = 1000.0  # of the noisiest step, as adapters are trained


class Adapter(Protocol):
    """`host.adapter_files.LoadedAdapter`, or one that a training holds."""

    config: AdapterConfig
    network: InterspatialAdapter
    dtype: torch.dtype


@dataclass
class Memory:
    """What is kept of a run for one window and device."""

    fixed: Fixed
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class InterspatialControl:
    """camera: None for one that holds and sees everybody    strength: 0..2, of what the adapter adds
    layers: block numbers whose residual is added, None for all of the adapter's
    uncond: "same" tells both prompts of the body, "drop" the positive one alone
    identity: [M, C + 1] of `tokens.identity_features`
    """

    adapter: Adapter
    body: BodyTrack
    camera: CameraPath | None
    strength: float = 1.0
    when: StepWindow = WHOLE
    layers: tuple[int, ...] | None = None
    uncond: str = "same"
    fit: Fit = STRETCHED
    identity: Tensor | None = None
    listener: Listener | None = None

    def why_not(self, step: StepCall) -> str | None:
        forward = step.forward
        if self.strength == 0:
            return "strength is 0"
        if step.compiled:
            return "the model is compiled: its blocks cannot be looked into"
        if forward.position is None:
            return "the guider of this run shows no sampler calls"
        if not step.run.schedule.contains(self.when, forward.position):
            return "outside the percent window"
        if reason := self.why_not_model(step.model, forward.family):
            return reason
        if isinstance(forward.expected, str):
            return forward.expected
        if reason := why_not_frames(step):
            return reason
        if not rows_kept(forward.branches, self.uncond):
            return "the negative prompt is not told of the body"
        return None if self._clip(step).seen else "no point of the body is in the camera's view"

    def why_not_model(self, model: nn.Module, family: Family | None) -> str | None:
        """Why the adapter is not for this model, whatever the run."""
        config = self.adapter.config
        if family is None or family.name != config.family:
            return f"the adapter is for {config.family}, and this model is {family.name if family else 'not known'}"
        if family.temporal_stride != config.temporal_stride:
            return "the adapter is for latent frames that hold another number of pixel frames"
        blocks = len(blocks_of(model, family))
        if not blocks:
            return f"the blocks of {family.name} cannot be looked into"
        if max(config.layers) >= blocks:
            return "the adapter is for a model with more blocks"
        if (width := width_of(model)) and width != config.host_width:
            return f"the adapter is for {config.host_width} channels, and this model has {width}"
        return None if chosen_layers(config.layers, self.layers) else "none of the chosen layers has an adapter"

    def evaluate(self, step: StepCall) -> Tensor:
        config, clip = self.adapter.config, self._clip(step)
        for name, text in clip.notes.items():
            step.say(name, text)
        if config.identity and self.identity is None:
            step.say("reference", "none, and the adapter was trained with one")
        if self.listener:
            tokens = clip.tokens.window(frames_of(step))
            self.listener.begin(tokens, step.forward.expected.grid, step.forward.branches)
        memory = step.state(None, lambda: self._memory(step, clip))
        visitor = Visitor(
            self.adapter.network, memory.fixed, memory.numbers, timestep_of(step), step.forward.expected,
            chosen_layers(config.layers, self.layers), self.strength, rows_kept(step.forward.branches, self.uncond),
            lambda text: step.say("blocks", text), self.listener,
        )  # fmt: skip
        with visiting_blocks(step.model, step.forward.family, visitor):
            return step.proceed()

    def _clip(self, step: StepCall) -> ClipTokens:
        """Tokens of the whole clip, once a run for each size."""
        clip = clip_of(step)

        def make() -> ClipTokens:
            found = tokens_of_clip(self.body, self.camera, clip, self.fit, self.adapter.config.depth_mode)
            return found.with_identity(self.identity if self.adapter.config.identity else None)

        return step.run.state((step.owner, "clip"), None, -1, clip, None, make)

    def _memory(self, step: StepCall, clip: ClipTokens) -> Memory:
        _, h, w = step.forward.expected.grid
        numbers = frames_of(step)
        tokens = clip.tokens.window(numbers).to(step.x.device)
        fixed = self.adapter.network.fixed(Points.of(tokens), h, w, self.adapter.dtype)
        return Memory(fixed, torch.tensor(numbers, device=step.x.device))


def why_not_frames(step: StepCall) -> str | None:
    """Why points cannot be given to the latent frames of this forward."""
    if len(step.shapes[0]) != 5:
        return "the model makes pictures"
    if max(getattr(step.model, name, None) or 1 for name in ("patch_size_t", "patch_temporal")) > 1:
        return "the model holds several latent frames in one token"
    if getattr(step.options.get("context_window"), "dim", TIME) != TIME:
        return "the context window cuts the picture, not the time"
    if len(frames_of(step)) != step.forward.expected.grid[0]:
        return "the context window holds frames that are not of the video"
    return None


def frames_of(step: StepCall) -> list[int]:
    """Numbers of the latent frames that this forward sees: all, or a context window's, which may have one in front that
    ComfyUI adds for causal models and throws away."""
    if step.forward.window is None:
        return list(range(step.forward.expected.grid[0]))
    anchor = getattr(step.options["context_window"], "causal_anchor_index", None)
    return [*([] if anchor is None or anchor < 0 else [anchor]), *step.forward.window]


def clip_of(step: StepCall) -> Clip:
    """The whole video that a forward, or its context window, is of."""
    layout, family = step.forward.expected, step.forward.family
    height, width = step.shapes[0][-2:]
    total = layout.grid[0] if step.forward.window is None else step.options["context_window"].total_frames
    rows, columns = (count * max(round(size / count), 1) for size, count in
                     zip((height, width), layout.grid[1:], strict=True))  # fmt: skip
    stride = family.spatial_stride
    return Clip(total, family.temporal_stride, *(stride * size for size in (height, width, rows, columns)))


def timestep_of(step: StepCall) -> Tensor:
    """0..1000 as adapters are trained: sigma of rectified flow, else the share of the noise range. returns: [1]"""
    position = step.forward.position
    share = position.sigma if step.run.schedule.flow else 1 - position.percent
    return torch.full((1,), TIMESTEPS * share, device=step.x.device)
