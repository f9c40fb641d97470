"""Query rows that see every key, for `block_attend`: all of them when a plan keeps everything, else text."""
# B batch   N tokens   H heads   D head dim   n query tokens of a tile   W keys

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .block_plan import BlockPlan
from .head_rows import head_rows


def attention_mask(bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The bias as a mask of the given dtype that leaves every row a key, and the rows that had none.

    A softmax ignores a common shift, so the largest bias becomes (nearly) 0 and only distances from it are rounded. The
    shift itself is rounded first, so that subtracting it from the many zeros of a bias costs them nothing.

    bias: fp32 [..., W], -inf allowed
    returns: [..., W], bool [..., 1]
    """
    top = bias.amax(-1, keepdim=True)
    dead = top == -torch.inf
    shift = torch.where(top.abs() < 1024, top.bfloat16().float(), top).masked_fill_(dead, 0)
    return (bias - shift).to(dtype).masked_fill_(dead, 0), dead


@dataclass(frozen=True)
class DenseRows:
    """Query rows that see every key, in any order: text, or all of them."""

    k: Tensor  # [B, N, H, D]
    v: Tensor  # [B, N, H, D]
    key_bias: Tensor | None  # [B, N]
    scale: float
    return_lse: bool
    max_bytes: int

    def attend(self, q: Tensor) -> tuple[Tensor, Tensor | None]:
        """q: [B, H, n, D]; returns the same shape, and lse [B, H, n] or None."""
        k, v = self.k.transpose(1, 2), self.v.transpose(1, 2)
        lse = self._lse(q) if self.return_lse else None
        if self.key_bias is None:
            return scaled_dot_product_attention(q, k, v, scale=self.scale), lse
        mask, dead = attention_mask(self.key_bias.float()[:, None, None], q.dtype)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(-1, -1, q.shape[2], -1), scale=self.scale)
        return out.masked_fill(dead, 0), lse

    def tiles(self, q: Tensor, plan: BlockPlan) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """For the plan's full query blocks: heads [B * H], tokens [B * H, n], out [B, H, n, D], lse [B, H, n]."""
        batch, _, heads, dim = q.shape
        rows, every = head_rows(q), torch.arange(batch * heads, device=q.device)
        step = max(1, self.max_bytes // (2 * batch * heads * dim * q.element_size()))
        for start, stop in plan.full:
            for tokens in plan.q_slots[:, start:stop].flatten(1).expand(len(every), -1).split(step, 1):
                yield every, tokens, *self.attend(rows.take(tokens, every).view(batch, heads, -1, dim))

    def _lse(self, q: Tensor) -> Tensor:
        lse = torch.empty(q.shape[:3], device=q.device)
        step = max(1, self.max_bytes // (12 * self.k.shape[1]))  # scores, with a bias, and what logsumexp makes of them
        for b, h in product(range(q.shape[0]), range(q.shape[1])):
            key = self.k[b, :, h].float().T * self.scale
            for start in range(0, q.shape[2], step):
                score = q[b, h, start : start + step].float() @ key
                if self.key_bias is not None:
                    score += self.key_bias[b]
                lse[b, h, start : start + step] = score.logsumexp(-1)
        return lse
