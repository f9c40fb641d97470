"""Block attention on any device: gathered keys in a softmax, a bounded batch of rows at a time.

Extra memory, in bytes, beside the inputs and the results, where I is the size of a number of q:
max_bytes, or what one query block needs where that is more, on the CPU with 8 N D for the keys and values of one head
in block order (see `ordered_rows.suits_order`); (2 I + 8) B K H D for the means of a tail;
8 X K S for the key slots' bias, X = 1, B or B H; 40 B H Q of row numbers and on the CPU 16 Q C to sort them, C the
longest list; I B N H D for each of q, k and v that is not a table of rows as stored (see `head_rows`).
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from .attend_call import AttendCall, Reshape
from .dense_rows import DenseRows
from .head_rows import head_rows
from .kept_rows import KeptRows, PooledTail
from .ordered_rows import OrderedRows, suits_order
from .pool_blocks import slot_bias

NAME = "gather"

# CPU: 32k tokens of one head in block order are 34 MB at D 128; what is left decides how many threads get a query block
# each, 3 MB at density 0.125 of 16k tokens. Devices want long launches.
CPU_BYTES, DEVICE_BYTES = 64 << 20, 256 << 20


def why_not(call: AttendCall) -> str | None:
    """It takes every call that `AttendCall.why_not` lets through."""
    return None


def attend(call: AttendCall) -> tuple[Tensor, Tensor | None]:
    """Output [B, N, H, D] and, if asked for, lse fp32 [B, N, H]; the contract is that of `block_attend`."""
    max_bytes = call.max_bytes
    if max_bytes is None:
        max_bytes = CPU_BYTES if call.q.device.type == "cpu" else DEVICE_BYTES
    out, lse = _attend(call, max_bytes)
    if call.reshape:
        _put_back(out, call.reshape, max_bytes)
    return out, lse


def _attend(call: AttendCall, max_bytes: int) -> tuple[Tensor, Tensor | None]:
    """Everything but the reshape."""
    q, k, v, plan = call.q, call.k, call.v, call.plan
    dense = DenseRows(k, v, call.key_bias, call.scale, call.return_lse, max_bytes)
    if plan.sees_everything:
        out, lse = dense.attend(q.transpose(1, 2))
        return out.transpose(1, 2), None if lse is None else lse.transpose(1, 2)
    pooled = PooledTail.of(call) if call.tail else None
    bias = slot_bias(plan.k_slots, call.key_bias, q.shape[2])
    rows = head_rows(q), head_rows(k), head_rows(v)
    kind = OrderedRows if suits_order(q) else KeptRows
    kept = kind(*rows, plan, bias, pooled, call.scale, call.return_lse, max_bytes)
    result = _Result(q, call.return_lse)
    for tile in chain(dense.tiles(q, plan), kept.tiles()):
        result.put(*tile)
    return result.views(q.shape)


def _put_back(out: Tensor, reshape: Reshape, max_bytes: int) -> None:
    """Apply the reshape in place, some tokens at a time; out: [B, N, H, D]."""
    step = max(1, max_bytes // (12 * out[:, 0].numel()))  # three fp32 copies
    for start in range(0, out.shape[1], step):
        piece = slice(start, start + step)
        full = out[:, piece].float() * reshape.rho[:, piece, :, None].float().clamp(max=1)
        if reshape.residual is not None:
            full += reshape.residual[:, piece]
        out[:, piece] = full


class _Result:
    """Output rows in model order, and a last row that takes what padding slots yield."""

    def __init__(self, q: Tensor, return_lse: bool) -> None:
        rows = q.shape[:3].numel()
        self.out = q.new_empty(rows + 1, q.shape[3])
        self.lse = torch.empty(rows + 1, device=q.device) if return_lse else None
        self.where = head_rows(self.out[:-1].view(q.shape))

    def put(self, heads: Tensor, tokens: Tensor, out: Tensor, lse: Tensor | None) -> None:
        """heads: [R]; tokens: [R, n], -1 on padding; out: R * n rows of D; lse: R * n."""
        ids = self.where.ids(tokens, heads).masked_fill(tokens < 0, len(self.out) - 1).flatten()
        self.out.index_copy_(0, ids, out.reshape(len(ids), -1))
        if lse is not None:
            self.lse.index_copy_(0, ids, lse.flatten())

    def views(self, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        return self.out[:-1].view(shape), None if self.lse is None else self.lse[:-1].view(shape[:3])
