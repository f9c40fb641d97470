"""What all sparse attention methods share: when they may run, in which token order, and the one kernel behind them.

A method is one file: a frozen dataclass of its own settings with `inputs` (its widgets) and `plan` (which blocks are
kept), registered by name. The node builds its list of methods from the registry; no other file changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ...kernels.block_attend import DTYPES, block_attend
from ...kernels.block_plan import BlockPlan, kept_share
from ..call import AttentionCall
from ..schedule import StepWindow
from . import orders
from .orders import BlockOrder


class Selector(Protocol):
    """One published way to choose blocks."""

    label: ClassVar[str]
    summary: ClassVar[str]

    @staticmethod
    def inputs(io) -> list:
        """The method's own widgets; `io` is ComfyUI's node schema module."""

    def plan(self, call: AttentionCall, order: BlockOrder) -> BlockPlan: ...


METHODS: dict[str, type[Selector]] = {}


def method(name: str) -> Callable[[type], type]:
    """Register a selector under the name that workflows store."""

    def add(selector: type) -> type:
        METHODS[name] = selector
        return selector

    return add


ORDERS: dict[str, Callable[..., BlockOrder]] = {"tile": orders.tile, "cube": orders.cube, "raster": orders.raster}


@dataclass(frozen=True)
class Blocks:
    """order: one of ORDERS    side: tokens along a side of a tile or cube; a raster run has side x side tokens"""

    order: str = "tile"
    side: int = 8

    def of(self, call: AttentionCall) -> BlockOrder:
        """The blocks of this call's layout, built once a run."""

        def build() -> BlockOrder:
            size = self.side * self.side if self.order == "raster" else self.side
            return ORDERS[self.order](call.layout, size).to(call.q.device)

        return call.run.state(self, str(call.q.device), -1, call.layout.key, None, build)


ALWAYS = StepWindow(0, None, "steps")


@dataclass(frozen=True)
class When:
    """Where attention stays dense. A call must lie in both windows.

    dense_layers: layer numbers, negative ones from the end    min_tokens: of the attention call
    """

    percent: StepWindow = ALWAYS
    steps: StepWindow = ALWAYS
    dense_layers: tuple[int, ...] = ()
    min_tokens: int = 0

    def why_not(self, call: AttentionCall) -> str | None:
        if call.layout.tokens < self.min_tokens:
            return f"fewer than {self.min_tokens} tokens"
        position = call.forward.position
        if position is None:
            return "the sampler does not tell the step"
        if not call.run.schedule.contains(self.steps, position):
            return "a dense step by count"
        if not call.run.schedule.contains(self.percent, position):
            return "outside the percent window"
        if call.layer in self.dense_layers or call.layer - call.forward.layers in self.dense_layers:
            return "a dense layer"
        return None


@dataclass(frozen=True)
class SparseAttention:
    """A sparse method as `host.attach_attention` takes it.

    tail: "row", "block" or None: how dropped blocks stay in the softmax, see `kernels.block_attend`
    """

    selector: Selector
    when: When = When()
    blocks: Blocks = Blocks()
    tail: str | None = "row"

    def why_not(self, call: AttentionCall) -> str | None:
        if reason := self.when.why_not(call) or call.mask_reason():
            return reason
        if call.k.shape[2] != call.q.shape[2]:
            return "grouped queries: fewer key heads than query heads"
        if call.q.dtype not in DTYPES:
            return f"attention runs in {call.q.dtype}"
        return None

    def attend(self, call: AttentionCall) -> Tensor:
        """returns: [B, N, H, D]"""
        plan = self.selector.plan(call, self.blocks.of(call))
        self._note_share(call, plan)
        return block_attend(call.q, call.k, call.v, plan, scale=call.scale, key_bias=bias_rows(call), tail=self.tail)

    def _note_share(self, call: AttentionCall, plan: BlockPlan) -> None:
        """The kept share goes into the report once a layer: reading it waits for the device."""
        seen = call.run.state((self, "share"), None, call.layer, call.layout.key, None, list)
        if not seen:
            seen.append(True)
            call.note(kept=float(kept_share(plan)))


def bias_rows(call: AttentionCall) -> Tensor | None:
    """The key bias with a row for each of the batch, [B, N] float32, as the kernels take it; None without one."""
    return None if call.key_bias is None else call.key_bias.expand(call.q.shape[0], -1)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer numbers from "0, 1, -1" or "0-2, -1".

    raises: ValueError that says what is accepted
    """
    found: list[int] = []
    for item in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        first, dash, last = item.partition("-") if not item.startswith("-") else (item, "", "")
        try:
            found += range(int(first), int(last) + 1) if dash else [int(item)]
        except ValueError:
            raise ValueError(
                f"Dense layers: {item!r} is not understood. Accepted: layer numbers and ranges separated by commas, "
                "negative ones from the end, for example 0-1, -1."
            ) from None
    return tuple(found)
