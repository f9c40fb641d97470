"""One attention call as a method sees it: queries, keys and values as B N H D, whatever ComfyUI's own layout was."""
from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from types import EllipsisType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .forward import Branch, Forward
from .layout import TokenLayout
from .report import Tally
from .run import Run

State = TypeVar("State")


@dataclass(frozen=True)
class Packing:
    """How ComfyUI packed q, k, v and wants the result.

    heads: query heads
    split: inputs are B H N D, else B N (H D)
    split_output: the result is wanted as B H N D, else B N (H D)
    """

    heads: int
    split: bool
    split_output: bool

    def sizes(self, q: Tensor, k: Tensor) -> tuple[int, int, int]:
        """Batch, query tokens and key tokens of packed tensors."""
        axis = -2 if self.split else 1
        return q.shape[0], q.shape[axis], k.shape[axis]

    def unpack(self, x: Tensor, head_dim: int) -> Tensor:
        """Packed -> B N H D, as a view. Fewer heads than `heads` are kept as they are (grouped queries)."""
        return x.transpose(1, 2) if self.split else x.unflatten(-1, (-1, head_dim))

    def pack(self, x: Tensor) -> Tensor:
        """B N H D -> as the inputs were packed."""
        return x.transpose(1, 2) if self.split else x.flatten(-2)

    def pack_output(self, x: Tensor) -> Tensor:
        """B N H D -> as the caller wants the result."""
        return x.transpose(1, 2) if self.split_output else x.flatten(-2)

    def unpack_output(self, x: Tensor) -> Tensor:
        """A result as the caller wants it -> B N H D."""
        return x.transpose(1, 2) if self.split_output else x.unflatten(-1, (self.heads, -1))


@dataclass(frozen=True)
class AttentionCall:
    """A call of the video's self attention, offered to one method.

    q: [B, N, H, D]; k, v: [B, N, H or fewer, D]; views, rope applied, never to be written into
    mask: as ComfyUI gave it, additive or bool, or None
    layout: what the N tokens are
    layer: number of this self attention in the network
    forward, run: what is known of the model call and of the run
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float | None
    layout: TokenLayout
    layer: int
    forward: Forward
    run: Run
    owner: Hashable
    tally: Tally
    _dense: Callable[..., Tensor]

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Rows of this call's batch by conditioning entry; keep state per branch, never per batch."""
        return self.forward.rows

    @cached_property
    def key_bias(self) -> Tensor | None:
        """The mask as an additive bias per key, [B or 1, N] float32; None without a mask. See `mask_reason`."""
        if self.mask is None:
            return None
        mask = _four_dims(self.mask)[:, 0, 0, :]
        if mask.is_floating_point():
            return mask.float()
        return torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, float("-inf"))

    def mask_reason(self) -> str | None:
        """Why the mask cannot be written as a bias per key; None when it can, or when there is none."""
        if self.mask is None:
            return None
        mask = _four_dims(self.mask)
        if mask.shape[1] != 1 or mask.shape[2] != 1:
            return "the attention mask differs between queries or heads"
        return None

    def dense(self, q: Tensor | None = None, k: Tensor | None = None, v: Tensor | None = None, *,
              mask: Tensor | EllipsisType | None = ..., layout: TokenLayout | None = None) -> Tensor:
        """The attention that would have run without this method: the hooks below it, then ComfyUI's own.

        Without arguments the call goes on untouched. With tensors [B, N', H, D] (any N') it runs on those. A call that
        has a mask then needs `mask`: a new one, or None for no mask. Pass `layout` when the tokens still follow one,
        else the hooks below stand aside.
        returns: [B, N', H, D]
        """
        if q is not None and mask is ... and self.mask is not None:
            raise ValueError("This attention call has a mask: give dense(q, k, v) one for its tokens, or mask=None.")
        return self._dense(q, k, v, None if mask is ... else mask, layout)

    def state(self, branch: Branch, factory: Callable[[], State]) -> State:
        """What this method keeps for this branch, layer, layout and window until the run ends."""
        return self.run.state(self.owner, branch.id, self.layer, self.layout.key, self.forward.window, factory)

    def only(self, branch: Branch) -> AttentionCall:
        """The rows of one branch as a call of their own."""
        rows = branch.rows
        q, k, v = self.q[rows], self.k[rows], self.v[rows]
        mask = self.mask[rows] if self.mask is not None and self.mask.ndim > 2 and len(self.mask) > 1 else self.mask
        alone = replace(self.forward, branches=(replace(branch, rows=slice(0, len(q))),), batch=len(q), frames=1)

        def dense(q_, k_, v_, mask_, layout) -> Tensor:
            if q_ is None:
                return self._dense(q, k, v, mask, self.layout)
            return self._dense(q_, k_, v_, mask_, layout)

        return replace(self, q=q, k=k, v=v, mask=mask, forward=alone, _dense=dense)

    def note(self, **shares: float) -> None:
        """Average shares of this call over the run for the report: `call.note(kept=0.11)`."""
        self.run.report.note(self.tally, **shares)

    def say(self, name: str, text: str) -> None:
        """A fact for the report's line: `call.say("preset", "Wan 480p")`."""
        self.run.report.say(self.tally, name, text)

    def detail(self, name: str, share: float) -> None:
        """A share that the report gives layer by layer and step by step."""
        self.run.report.detail(self.tally, name, share, self.layer, self.run.step)


def _four_dims(mask: Any) -> Tensor:
    """ComfyUI's reading of a mask: 2-D is query x key, 3-D is batch x query x key."""
    if mask.ndim == 2:
        return mask[None, None]
    return mask[:, None] if mask.ndim == 3 else mask
