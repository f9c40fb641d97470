"""Launches once what the patches of a model will launch, on random data, so that a run's first step need not compile.

Kernels are compiled for a head dim, a dtype, a tail and size classes of blocks and their tables, never for a length: a
clip with few heads and any values will do. It goes through the method's own code, so whatever that comes to use is
compiled too.
"""
# B batch   N tokens   H heads   D head dim   M rows   K inputs

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..kernels.weighted_sum import weighted_sum
from .attention import SparseAttention
from .cache import StepCache
from .call import AttentionCall
from .families import Family
from .forward import Branch, Forward
from .layout import Grid, TokenLayout, arrange
from .quant.format import Coded
from .quant.linear import linear
from .report import Card, Report
from .run import Run
from .schedule import Schedule

# Query rows of a call, all heads together. With blocks of 64 slots these are 4096 programs, thirty for each of the 132
# multiprocessors of an H200; on a clip of a thousand tokens a tile would be judged by how it fills an idle card. So a
# long clip has few heads here, and at least two.
ROWS = 1 << 18
# T H W in tokens, where the clip is not known: 81 frames of Wan at 480p and 720p, whose blocks are uneven, and a clip
# whose blocks are all full, which needs no test for empty slots and so another variant of a kernel.
CLIPS = {"480p": (21, 30, 52), "720p": (21, 45, 80), "even blocks": (16, 32, 32)}
STEPS = 20  # more than "few steps", where some methods stand aside
MANY, FEW = 4096, 64  # tokens of a linear layer: of a video, and of a short text, which has tiles of its own
NUMBERS = 1 << 20  # of each tensor of a weighted sum


@dataclass(frozen=True)
class Seen:
    """What the video's self attention of a model is like.

    layout: of the tokens    known: its grid is that of the clip that will be sampled
    stacks: transformer blocks per attribute, as in `Forward`
    """

    layout: TokenLayout
    known: bool
    heads: int
    dim: int
    dtype: torch.dtype
    family: Family | None = None
    stacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A kind of quantised linear layer. bring: () -> its weight on the device    biased: it has a bias"""

    bring: Callable[[], Coded]
    biased: bool
    act_bits: int


@dataclass(frozen=True)
class Task:
    """A part of the warm-up. run: launches its kernels    reason: why there is nothing to launch, or None"""

    name: str
    run: Callable[[], None]
    reason: str | None = None


def idle(name: str, reason: str) -> Task:
    """A task that has nothing to do."""
    return Task(name, lambda: None, reason)


def clips(seen: Seen, usual: Mapping[str, Grid] = CLIPS) -> dict[str, Seen]:
    """Clips that between them compile what a run needs, by name: the very clip where it is known, else usual ones.

    Their length is that of a run, because tables of blocks are sorted in powers of two of it, and clusters are as large
    as it makes them. usual: grids T H W
    """
    grids = {"": seen.layout.grid} if seen.known else usual
    found = {}
    for name, grid in grids.items():
        layout = arrange((one.kind, grid if one.kind == "video" else len(one)) for one in seen.layout.segments)
        found[name] = replace(seen, layout=layout, heads=min(seen.heads, max(2, ROWS // layout.tokens)))
    return found


def attention(
    name: str, sparse: SparseAttention, seen: Seen, device: torch.device, usual: Mapping[str, Grid] = CLIPS
) -> list[Task]:
    """The kernels of a sparse method: without a mask, and with one where the model has text that may be padded."""
    made = []
    for what, clip in clips(seen, usual).items():
        one = _attention(f"{name}, {what}" if what else name, sparse, Calls(clip, device))
        if one.reason and clip.heads < seen.heads:  # a calibration is for all heads
            clip = replace(clip, heads=seen.heads)
            one = _attention(one.name, sparse, Calls(clip, device))
        if one.reason:
            return [idle(name, one.reason)]
        made.append(one)
    text = [segment for segment in clip.layout.segments if segment.kind == "text"]
    if text:
        mask = torch.ones(1, 1, 1, clip.layout.tokens, dtype=torch.bool)
        mask[..., text[0].stop - 1] = False
        made.append(_attention(f"{name}, padded text", sparse, Calls(clip, device, mask)))
    return made


def _attention(name: str, sparse: SparseAttention, calls: Calls) -> Task:
    layers = range(max(1, sum(calls.seen.stacks.values())))
    reasons = [sparse.method.why_not(calls.at(0, layer)) for layer in layers]
    if None not in reasons:
        return idle(name, reasons[0])
    layer = reasons.index(None)

    def launch() -> None:
        try:
            first = min(sparse.settled(calls.at(0, layer)).when.first, STEPS - 2)
            middle = (first + STEPS) // 2  # refreshes, searches and audits lie at the start and in the middle
            calls.draw()
            for step in sorted({first, first + 1, middle, middle + 1, STEPS - 1} & {*range(STEPS)}):
                sparse.attend(calls.at(step, layer))
        finally:
            calls.drop()

    return Task(name, launch)


class Calls:
    """Attention calls of a run of one prompt, on the same tensors. mask: bool [1, 1, 1, N] or None"""

    def __init__(self, seen: Seen, device: torch.device, mask: Tensor | None = None) -> None:
        self.seen, self.device = seen, device
        self.mask = None if mask is None else mask.to(device)
        self.run = Run(Schedule([1 - i / STEPS for i in range(STEPS + 1)], lambda percent: 1.0 - percent), Report())
        self.tally = self.run.report.tally("warm-up", Card("sparse", "sparse"))
        self.drop()

    def draw(self) -> None:
        """Random queries, keys and values; before, calls have nothing but their sizes."""
        self.qkv = [torch.randn(self.shape, device=self.device, dtype=self.seen.dtype) for _ in "qkv"]

    def drop(self) -> None:
        """Give back all memory."""
        self.run.close()
        self.qkv = [torch.empty(1, device=self.device, dtype=self.seen.dtype).expand(self.shape)] * 3

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, self.seen.layout.tokens, self.seen.heads, self.seen.dim

    def at(self, step: int, layer: int) -> AttentionCall:
        seen, run = self.seen, self.run
        run.begin_call(run.schedule.sigmas[step])
        forward = Forward(seen.family, seen.layout, 1, (Branch("warm-up", 0, slice(0, 1)),), run.position,
                          stacks=seen.stacks)  # fmt: skip
        return AttentionCall(*self.qkv, self.mask, None, seen.layout, layer, forward, run, "warm-up", self.tally,
                             self._dense)  # fmt: skip

    def _dense(self, q: Tensor | None, k: Tensor | None, v: Tensor | None, mask: Tensor | None, layout) -> Tensor:
        given = self.qkv if q is None else (q, k, v)
        mask = self.mask if q is None else mask
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in given), attn_mask=mask).transpose(1, 2)


def sums(name: str, cache: StepCache, dtype: torch.dtype, device: torch.device) -> Task:
    """The forecasts of a step cache: sums of up to as many tensors as it keeps, of outputs and of hidden states."""

    def launch() -> None:
        for kind in dict.fromkeys((torch.float32, dtype)):
            kept = [torch.randn(NUMBERS, device=device, dtype=kind) for _ in range(cache.method.keeps)]
            for count in range(1, len(kept) + 1):
                weighted_sum(kept[:count], [1 / count] * count)

    return Task(name, launch)


def products(name: str, layer: Layer, dtype: torch.dtype, device: torch.device) -> Task:
    """A quantised layer, with the tokens of a video and of a text."""

    def launch() -> None:
        coded = layer.bring()
        bias = torch.randn(coded.shape[0], device=device, dtype=dtype) if layer.biased else None
        for tokens in (MANY, FEW):
            linear(torch.randn(tokens, coded.shape[1], device=device, dtype=dtype), coded, bias, layer.act_bits)

    return Task(name, launch)
