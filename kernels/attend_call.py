"""One call of block attention as every backend sees it, and what no backend can take."""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .block_plan import BlockPlan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Tail = Literal["row", "block"]


@dataclass(frozen=True)
class Reshape:
    """Puts back what an earlier dense call has measured (Re-ttention, arXiv 2505.22918): min(rho, 1) out + residual.

    rho: fp32 [B, N, H], share of the softmax mass that the plan keeps
    residual: [B, N, H, D] in any floating dtype, what the dropped keys contributed; None: nothing
    """

    rho: Tensor
    residual: Tensor | None = None


@dataclass(frozen=True)
class AttendCall:
    """The arguments of `block_attend`, with the scale as a number. Shapes and meanings are documented there."""

    q: Tensor
    k: Tensor
    v: Tensor
    plan: BlockPlan
    scale: float
    key_bias: Tensor | None = None
    tail: Tail | None = None
    reshape: Reshape | None = None
    return_lse: bool = False
    max_bytes: int | None = None
    int8: bool = False
    key_means: tuple[Tensor, Tensor] | None = None

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        return self._tensors() or self._tables() or self._extras()

    def _tensors(self) -> str | None:
        q, k, v = self.q, self.k, self.v
        batch, _, heads, dim = q.shape
        if q.dtype not in DTYPES or {k.dtype, v.dtype} != {q.dtype}:
            return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; all three must be float32, bfloat16 or float16"
        if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (batch, heads, dim):
            return f"k is {list(k.shape)} and v {list(v.shape)}; q needs them as [{batch}, N, {heads}, {dim}]"
        if len({x.device for x in (q, k, v, self.plan.q_slots, self.plan.k_slots, self.plan.cols)}) > 1:
            return f"the plan is on {self.plan.cols.device}, q on {q.device}, k on {k.device} and v on {v.device}"
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            return "gradients are asked for, and this attention is for inference"
        return None

    def _tables(self) -> str | None:
        plan, heads = self.plan, self.q.shape[0] * self.q.shape[2]
        for name in ("q_slots", "k_slots", "cols"):
            if (shape := getattr(plan, name).shape)[0] not in (1, heads):
                return f"the plan's {name} serve {shape[0]} heads; the call has {heads}, and 1 would serve all"
        for name, slots, x in (("query", plan.q_slots, self.q), ("key", plan.k_slots, self.k)):
            if slots.shape[1:].numel() < x.shape[1]:
                return f"the plan has {slots.shape[1:].numel()} {name} slots for {x.shape[1]} tokens"
        return None

    def _extras(self) -> str | None:
        if self.key_bias is not None and self.key_bias.shape != self.k.shape[:2]:
            return f"the key bias is {list(self.key_bias.shape)}; it must be {list(self.k.shape[:2])}"
        if self.tail not in (None, "row", "block"):
            return f"the tail is {self.tail!r}; it must be 'row', 'block' or None"
        if self.reshape is None:
            return None
        if self.tail is not None:
            return "it has a tail and a reshape, and both put back the same mass; give one of them"
        if self.reshape.rho.shape != self.q.shape[:3]:
            return f"rho is {list(self.reshape.rho.shape)}; it must be {list(self.q.shape[:3])}"
        if self.reshape.residual is not None and self.reshape.residual.shape != self.q.shape:
            return f"the residual is {list(self.reshape.residual.shape)}; it must be {list(self.q.shape)}"
        return None
