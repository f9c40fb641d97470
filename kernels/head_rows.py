"""The tokens of every head as rows of one table, so that any gather is a single `index_select`.

A view wherever the strides allow it: B N H D, B H N D, a slice of a fused qkv and expanded heads are never copied.
"""
# B batch   N tokens   H heads   D head dim   R any number of (batch, head) pairs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadRows:
    """Row `first[b * H + h] + n * step` of `table` is token n of head h in batch entry b."""

    table: Tensor  # [rows, D]
    first: Tensor  # int64 [B * H]
    step: int

    def ids(self, tokens: Tensor, heads: Tensor) -> Tensor:
        """Row numbers; a padding slot (-1) reads token 0, so what it yields must be masked or dropped.

        tokens: int [R, ...]
        heads: int64 [R], b * H + h
        returns: int64 [R, ...]
        """
        first = self.first[heads].view(-1, *[1] * (tokens.ndim - 1))
        return tokens.clamp(min=0) * self.step + first

    def take(self, tokens: Tensor, heads: Tensor) -> Tensor:
        """Copies of rows; arguments as for `ids`. returns: [R, ..., D]"""
        ids = self.ids(tokens, heads)
        return self.table.index_select(0, ids.flatten()).view(*ids.shape, -1)


def head_rows(x: Tensor) -> HeadRows:
    """Address x by head and token.

    x: [B, N, H, D]
    """
    batch, tokens, heads, dim = x.shape
    if x.stride(-1) != 1 or any(stride % dim for stride in x.stride()[:-1]):
        x = x.contiguous()
    b, n, h = (stride // dim for stride in x.stride()[:-1])
    last = (batch - 1) * b + (tokens - 1) * n + (heads - 1) * h
    first = torch.arange(batch, device=x.device)[:, None] * b + torch.arange(heads, device=x.device) * h
    return HeadRows(x.as_strided((last + 1, dim), (dim, 1)), first.flatten(), n)
