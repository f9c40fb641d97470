"""The record that holds all knowledge about one native model family, and the view of one forward it reads.

A family says, before a forward runs, which tokens the video's self attention will see. It never sees the tokens; the
attention hook later compares counts and touches only what fits exactly.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..layout import Grid, TokenLayout

Shape = tuple[int, ...]

NETWORKS = ("comfy.ldm.", __name__.removesuffix("families.family") + "nets.")  # modules that networks are defined in


@dataclass(frozen=True)
class Inputs:
    """What one forward receives; only shapes are read.

    latent: B C T H W of the video latent, T = 1 for images
    audio: shape of the audio latent of a model that makes both, else None
    text: tokens of the text conditioning
    conds: the keyword arguments of `apply_model`, by their names in ComfyUI
    options: transformer_options of the forward
    """

    model: nn.Module
    latent: Shape
    text: int
    audio: Shape | None = None
    conds: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        """Shape of the conditioning tensor `name`, None where it is absent."""
        value = self.conds.get(name)
        return tuple(value.shape) if isinstance(value, Tensor) else None

    def shapes(self, name: str) -> list[Shape]:
        """Shapes of the conditioning list `name`."""
        return [tuple(value.shape) for value in self.conds.get(name) or ()]


@dataclass(frozen=True)
class Timed:
    """A conditioning tensor that has a time axis.

    dim: the axis
    scale: entries per latent frame
    offset: leading latent frames that have no entry
    """

    key: str
    dim: int
    scale: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Family:
    """One native model family, as data.

    classes: names of network classes, of ComfyUI or of this pack, whose forward this entry describes
    blocks: attributes that hold the transformer blocks with video self attention, in order of execution
    temporal_stride, spatial_stride: pixels per latent entry
    layout: inputs -> the layout of the video's self attention, or a sentence why it cannot be told
    others: inputs -> token counts of the other sequences that take part in attention, with their names
    variant: tells families of one class apart
    timed: conditioning that must be cut with the latent when a time window is taken
    opaque: why no attention of this model can be seen, for models that show none
    streams: for each stack of blocks in order of execution, the names of the arguments that carry the hidden states, in
        the order in which a block returns them. Empty: blocks of this model cannot be skipped
    batch_axis: axis of the batch in those hidden states
    modules: names of the parts of a block whose outputs, gated, are all that it adds to the stream, for a cache of
        single modules. Empty: attention is written out in the block, the parts are nested, or some are of the sound
    unskippable: inputs -> why blocks of this forward cannot be skipped although `streams` are known, or None. What a
        model adds between its blocks is no reason: it is in the output of the last block
    audio_clock: model, options, sigma of the video -> sigma of the audio and its derivative by the video's, for models
        whose sound has a schedule of its own
    frames_in_batch: the video's self attention runs within each latent frame, with the frames as rows of its batch;
        `layout` then is that of one frame
    """

    name: str
    classes: tuple[str, ...]
    blocks: tuple[str, ...]
    temporal_stride: int
    spatial_stride: int
    layout: Callable[[Inputs], TokenLayout | str]
    others: Callable[[Inputs], Mapping[int, str]] = lambda inputs: {inputs.text: "the text"}
    variant: Callable[[nn.Module], bool] = lambda model: True
    timed: tuple[Timed, ...] = ()
    opaque: str | None = None
    streams: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch_axis: int = 0
    modules: tuple[str, ...] = ()
    unskippable: Callable[[Inputs], str | None] = lambda inputs: None
    audio_clock: Callable[[nn.Module, Mapping[str, Any], float], tuple[float, float]] | None = None
    frames_in_batch: bool = False

    def matches(self, model: nn.Module) -> bool:
        """True when `model` (not compiled) is of this family."""
        return any(cls.__name__ in self.classes for cls in native_classes(model)) and self.variant(model)

    def stacks(self, model: nn.Module) -> dict[str, int]:
        """Number of transformer blocks per attribute in `blocks`; absent attributes are left out."""
        return {name: len(getattr(model, name)) for name in self.blocks if hasattr(model, name)}

    def expect(self, inputs: Inputs) -> TokenLayout | str:
        """The layout that the video's self attention must have in this forward, or why it cannot be known."""
        if self.opaque:
            return self.opaque
        layout = self.layout(inputs)
        if isinstance(layout, str):
            return layout
        twin = self.others(inputs).get(layout.tokens)
        if twin:
            return f"the video has as many tokens as {twin} ({layout.tokens}): their attention calls look alike"
        return layout

    def slice_cond(self, conds: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """`conds` with every timed tensor cut to the latent frames start..stop (stop not included)."""
        out = dict(conds)
        for timed in self.timed:
            value = conds.get(timed.key)
            if isinstance(value, Tensor) and value.ndim > timed.dim:
                first = max(start - timed.offset, 0) * timed.scale
                last = max(stop - timed.offset, 0) * timed.scale
                out[timed.key] = value.narrow(timed.dim, first, min(last, value.shape[timed.dim]) - first)
        return out


def native_classes(model: nn.Module) -> list[type]:
    """The classes of `model` that ComfyUI or this pack define as networks, most specific first."""
    return [cls for cls in type(model).__mro__ if cls.__module__.startswith(NETWORKS)]


def padded(size: Shape, patch: Shape) -> Grid:
    """Patches per axis of a latent T H W that the model pads up to whole patches."""
    return tuple(math.ceil(s / p) for s, p in zip(size[-3:], patch, strict=True))


def cropped(size: Shape, patch: Shape) -> Grid:
    """Patches per axis where the model embeds without padding and the rest is dropped."""
    return tuple(s // p for s, p in zip(size[-3:], patch, strict=True))
