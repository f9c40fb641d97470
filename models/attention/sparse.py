"""A sparse method on a model: when it runs, in which blocks, how much of attention it keeps, what the report says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.attend_call import DTYPES, Tail
from ...kernels.block_plan import kept_share
from ..call import AttentionCall
from .blocks import TILES, Blocks
from .error_target import ErrorTarget
from .job import Job
from .looks import Looks, Share
from .presets import Preset, preset_of
from .registry import Method
from .when import ALWAYS, AT_ONCE, Ramp, When

EVERY = 4  # steps of which one says how much is kept: it costs a launch a head and operation


@dataclass(frozen=True)
class Settled:
    """Everything that was left to the preset, decided for one run and layout."""

    preset: Preset
    when: When
    blocks: Blocks


@dataclass(frozen=True)
class SparseAttention:
    """What `host.attach_attention` takes. Settings that may be None are the preset's then.

    tail: "row", "block" or None: how dropped blocks stay in the softmax, see `kernels.block_attend`
    target: an error that sets the density, in place of the method's density
    int8: the products of queries and keys may be in int8, see `kernels.block_attend`
    """

    method: Method
    when: When = ALWAYS
    blocks: Blocks = TILES
    tail: Tail | None = "row"
    ramp: Ramp = AT_ONCE
    target: ErrorTarget | None = None
    int8: bool = False

    def __post_init__(self) -> None:
        if self.target and not self.method.steerable:
            raise ValueError(
                f"Sparse Video Attention: An error target cannot steer {self.method.label}, whose blocks stay what "
                "they are for many calls. Set error_target to 0, or take another method."
            )

    def why_not(self, call: AttentionCall) -> str | None:
        if reason := self.settled(call).when.why_not(call) or call.mask_reason():
            return reason
        if call.k.shape[2] != call.q.shape[2]:
            return "grouped queries: fewer key heads than query heads"
        if call.q.dtype not in DTYPES:
            return f"attention runs in {call.q.dtype}"
        return self.method.why_not(call) or Looks.of(self, call).not_finite(call)

    def settled(self, call: AttentionCall) -> Settled:
        """Made at the first call of a run and layout."""

        def settle() -> Settled:
            preset = preset_of(call)
            when = self.when.resolved(preset, call.run.schedule.steps)
            if self.when != when or not (self.method.density or self.method.own_rule or self.target):
                layers = ", ".join(map(str, when.dense_layers)) or "none"
                call.say("preset", f"{preset.name} (dense steps {when.first}, dense layers {layers})")
            return Settled(preset, when, self.blocks.resolved(preset.order))

        return call.run.state((self, "settled"), None, -1, call.layout.key, None, settle)

    def job(self, call: AttentionCall, density: float | None, memo: dict | None = None) -> Job:
        """The call as a method takes it, at a density."""
        memo = {} if memo is None else memo
        return Job(call, self.settled(call).blocks, self.tail, density, memo, self.int8)

    def attend(self, call: AttentionCall) -> Tensor:
        """returns: [B, N, H, D]"""
        if self.target and len(call.branches) > 1:  # each prompt has a density of its own, batched or not
            return torch.cat([self._attend(call.only(branch)) for branch in call.branches])
        return self._attend(call)

    def _attend(self, call: AttentionCall) -> Tensor:
        memo: dict = {}
        job = self.job(call, self.target.density(call, self, memo) if self.target else self._density(call), memo)
        out = self.method.attend(job)
        self._note_share(job)
        return out

    def _density(self, call: AttentionCall) -> float | None:
        settled = self.settled(call)
        value = self.method.density or (None if self.method.own_rule else settled.preset.density)
        return value and self.ramp.density(value, settled.when, call.forward.position)

    def _note_share(self, job: Job) -> None:
        """The kept share goes into the report. Where the density is met in every call, one call of a layer says it for
        all; else one in every EVERY steps does. The first of a layer is read at once, later ones at the next look.
        """
        call = job.call
        if job.dense:
            call.note(kept=1.0)
            return
        steady = self.method.steerable and job.density is not None
        period = None if steady else call.forward.position.step // EVERY
        name = (self, "share", job.density and round(job.density, 2), period)

        def kept() -> Share:
            return Share(kept_share(job.used))

        share = call.run.state(name, None, call.layer, call.layout.key, None, kept)
        if share.value is None and not period:
            share.value = float(share.tensor)
        Looks.of(self, call).note(call, share)
