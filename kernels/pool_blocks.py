"""Block means: one pooled token per block, weighted by what the key bias leaves alive.

The mean key with the log of its weight stands for the whole block in a softmax (Sol-Attn, arXiv 2607.24027; SVG-EAR,
arXiv 2603.08982). Both count live slots; here a finite bias weighs too, so a block of equal keys is replaced exactly.
"""
# B batch   N tokens   H heads   D head dim   K blocks   S slots per block   G = 1 (shared geometry) or B * H

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from . import triton_pool
from .dispatch import Backend, Dispatch
from .head_rows import HeadRows, head_rows

# 32k tokens of 8 heads, D 128, fp32, one core: 76 ms in such chunks, 166 ms at once. Devices want long launches.
CPU_BYTES, DEVICE_BYTES = 4 << 20, 256 << 20
SQUARE_BYTES = 64 << 20  # of squares on the CPU at a time; a head of Wan at 720p takes 39 MB


@dataclass(frozen=True)
class PoolCall:
    """The arguments of `pool_blocks`; squares: also the mean of squares."""

    x: Tensor
    slots: Tensor
    key_bias: Tensor | None = None
    squares: bool = False

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.x

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        if self.x.ndim != 4 or not self.x.is_floating_point():
            return f"x is {self.x.dtype} with {self.x.ndim} dims; it takes floating point numbers [B, N, H, D]"
        if len(self.slots) not in (1, heads := self.x.shape[0] * self.x.shape[2]):
            return f"the slots serve {len(self.slots)} heads; x has {heads}, and 1 would serve all"
        if self.key_bias is not None and self.key_bias.shape != self.x.shape[:2]:
            return f"the key bias is {list(self.key_bias.shape)}; it must be {list(self.x.shape[:2])}"
        return None


def pool_blocks_reference(x: Tensor, slots: Tensor, key_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One block at a time; the contract is that of `pool_blocks`."""
    batch, _, heads, dim = x.shape
    mean = torch.zeros(batch, slots.shape[1], heads, dim, device=x.device)
    log_mass = torch.full(mean.shape[:3], -torch.inf, device=x.device)
    for b in range(batch):
        for h in range(heads):
            for j, block in enumerate(slots[(b * heads + h) % slots.shape[0]]):
                live = block[block >= 0].long()
                weight = torch.ones(len(live), device=x.device) if key_bias is None else key_bias[b, live].float().exp()
                if weight.sum() > 0:
                    mean[b, j, h] = (weight[:, None] * x[b, live, h].float()).sum(0) / weight.sum()
                    log_mass[b, j, h] = weight.sum().log()
    return mean, log_mass


def pool_squares_reference(x: Tensor, slots: Tensor, key_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The contract is that of `pool_squares`."""
    return *pool_blocks_reference(x, slots, key_bias), pool_blocks_reference(x.float().square(), slots, key_bias)[0]


def pool_blocks(
    x: Tensor, slots: Tensor, key_bias: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted mean of the live tokens of each block, and the log of their total weight.

    A token weighs exp(key_bias), or 1. A block whose weights are all zero has mean 0 and log weight -inf.

    x: [B, N, H, D]
    slots: int32 [G, K, S], token numbers; -1 is padding
    key_bias: [B, N] fp32, -inf allowed
    backend: the name of one of BACKENDS, which then must take the call
    returns: mean fp32 [B, K, H, D]; log weight fp32 [B, K, H]
    raises: ValueError with the reason of `PoolCall.why_not`, or of the backend that was asked for
    """
    mean, log_mass, _ = BACKENDS.run(PoolCall(x, slots, key_bias), backend)
    return mean.transpose(1, 2), log_mass.transpose(1, 2)


def pool_squares(
    x: Tensor, slots: Tensor, key_bias: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `pool_blocks` returns, and with the same weights the mean of the squares, fp32 [B, K, H, D]."""
    mean, log_mass, square = BACKENDS.run(PoolCall(x, slots, key_bias, squares=True), backend)
    return mean.transpose(1, 2), log_mass.transpose(1, 2), square.transpose(1, 2)


def slot_bias(slots: Tensor, key_bias: Tensor | None, heads: int) -> Tensor:
    """What to add to the logit of each key slot: its key bias, -inf on padding.

    slots: int32 [G, K, S]
    key_bias: [B, N] or None
    returns: fp32 [X, K, S], X = 1, B or B * H; head g of B * H reads entry g * X // (B * H)
    """
    if key_bias is None:
        return torch.zeros(slots.shape, device=slots.device).masked_fill_(slots < 0, -torch.inf)
    entries = slots.expand(key_bias.shape[0] * (heads if slots.shape[0] > 1 else 1), -1, -1)
    owner = torch.arange(len(entries), device=slots.device) * key_bias.shape[0] // len(entries)
    bias = key_bias.float()[owner[:, None, None], entries.clamp(min=0).long()]
    return bias.masked_fill_(entries < 0, -torch.inf)


def _in_torch(call: PoolCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and mean of squares as [B, H, K, D], log weight as [B, H, K]."""
    x, (batch, _, heads, _) = call.x, call.x.shape
    weight, log_mass = _weights(call.slots, call.key_bias, batch, heads)
    # One pass without a gathered copy: 42 ms where the gather takes 76. In half precision it would round the sums,
    # and not every device has it.
    if x.device.type == "cpu" and x.dtype == torch.float32:
        mean = _bag(head_rows(x), call.slots, weight)
        square = _bag_of_squares(call, weight) if call.squares else None
    else:
        mean, square = _gather(head_rows(x), call.slots, weight, call.squares)
    shape = batch, heads, call.slots.shape[1]
    return mean.view(*shape, -1), log_mass.view(shape), None if square is None else square.view(*shape, -1)


def _weights(slots: Tensor, key_bias: Tensor | None, batch: int, heads: int) -> tuple[Tensor, Tensor]:
    """Normalised slot weights, fp32 [B * H, K, S], and log totals, fp32 [B * H, K]."""
    bias = slot_bias(slots, key_bias, heads)
    log_mass = bias.logsumexp(-1)
    weight = (bias - log_mass.masked_fill(log_mass == -torch.inf, 0)[..., None]).exp()
    owner = torch.arange(batch * heads, device=slots.device) * len(bias) // (batch * heads)
    return weight[owner], log_mass[owner]


def _bag(rows: HeadRows, slots: Tensor, weight: Tensor) -> Tensor:
    """[B * H, K, D] by summing table rows in place."""
    ids = rows.ids(slots.expand(len(weight), -1, -1), torch.arange(len(weight), device=slots.device))
    mean = embedding_bag(ids.flatten(0, 1), rows.table, mode="sum", per_sample_weights=weight.flatten(0, 1))
    return mean.view(*weight.shape[:2], -1)


def _bag_of_squares(call: PoolCall, weight: Tensor) -> Tensor:
    """[B, H, K, D], some heads at a time. weight: [B * H, K, S]"""
    x, (batch, _, heads, _) = call.x, call.x.shape
    weight, slots = (t.expand(batch * heads, -1, -1).unflatten(0, (batch, heads)) for t in (weight, call.slots))
    step = max(1, SQUARE_BYTES // (4 * x[:, :, 0].numel()))
    parts = []
    for start in range(0, heads, step):
        some = slice(start, start + step)
        rows = head_rows(x[:, :, some].square())
        pooled = _bag(rows, slots[:, some].flatten(0, 1), weight[:, some].flatten(0, 1))
        parts.append(pooled.unflatten(0, (batch, -1)))
    return torch.cat(parts, 1)


def _gather(rows: HeadRows, slots: Tensor, weight: Tensor, squares: bool) -> tuple[Tensor, Tensor | None]:
    """[B * H, K, D] fp32 by gathering some blocks at a time; the same of the squares, if asked for."""
    heads, blocks, size = weight.shape
    dim = rows.table.shape[1]
    mean = torch.empty(heads * blocks, dim, device=slots.device)
    square = torch.empty_like(mean) if squares else None
    chunk = CPU_BYTES if slots.device.type == "cpu" else DEVICE_BYTES
    step = max(1, chunk // (4 * size * dim))
    for start in range(0, heads * blocks, step):
        pair = torch.arange(start, min(start + step, heads * blocks), device=slots.device)
        head, block = pair // blocks, pair % blocks
        ids, share = rows.ids(slots[head * len(slots) // heads, block], head), weight[head, block][:, None]
        tile = rows.table.index_select(0, ids.flatten()).view(-1, size, dim).float()
        mean[start : start + step] = torch.bmm(share, tile)[:, 0]
        if square is not None:
            square[start : start + step] = torch.bmm(share, tile.square())[:, 0]
    return mean.view(heads, blocks, dim), square


BACKENDS = Dispatch(
    "Block pooling",
    (
        Backend(triton_pool.NAME, triton_pool.why_not, triton_pool.pooled),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
