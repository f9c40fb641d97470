"""Block means: one pooled token per block, weighted by what the key bias leaves alive.

The mean key with the log of its weight stands for the whole block in a softmax (Sol-Attn, arXiv 2607.24027; SVG-EAR,
arXiv 2603.08982). Both count live slots; here a finite bias weighs too, so a block of equal keys is replaced exactly.
"""
# B batch   N tokens   H heads   D head dim   K blocks   S slots per block   G = 1 (shared geometry) or B * H

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .head_rows import HeadRows, head_rows

# 32k tokens of 8 heads, D 128, fp32, one core: 76 ms in such chunks, 166 ms at once. Devices want long launches.
CPU_BYTES, DEVICE_BYTES = 4 << 20, 256 << 20


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


def pool_blocks(x: Tensor, slots: Tensor, key_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted mean of the live tokens of each block, and the log of their total weight.

    A token weighs exp(key_bias), or 1. A block whose weights are all zero has mean 0 and log weight -inf.

    x: [B, N, H, D]
    slots: int32 [G, K, S], token numbers; -1 is padding
    key_bias: [B, N] fp32, -inf allowed
    returns: mean fp32 [B, K, H, D]; log weight fp32 [B, K, H]
    """
    batch, _, heads, dim = x.shape
    weight, log_mass = _weights(slots, key_bias, batch, heads)
    rows = head_rows(x)
    # One pass without a gathered copy: 42 ms where the gather takes 76. In half precision it would round the sums,
    # and not every device has it.
    pool = _bag if x.device.type == "cpu" and x.dtype == torch.float32 else _gather
    mean = pool(rows, slots, weight).view(batch, heads, -1, dim)
    return mean.transpose(1, 2), log_mass.view(batch, heads, -1).transpose(1, 2)


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


def _gather(rows: HeadRows, slots: Tensor, weight: Tensor) -> Tensor:
    """[B * H, K, D] fp32 by gathering some blocks at a time."""
    heads, blocks, size = weight.shape
    dim = rows.table.shape[1]
    mean = torch.empty(heads * blocks, dim, device=slots.device)
    chunk = CPU_BYTES if slots.device.type == "cpu" else DEVICE_BYTES
    step = max(1, chunk // (4 * size * dim))
    for start in range(0, heads * blocks, step):
        pair = torch.arange(start, min(start + step, heads * blocks), device=slots.device)
        head, block = pair // blocks, pair % blocks
        ids = rows.ids(slots[head * len(slots) // heads, block], head)
        tile = rows.table.index_select(0, ids.flatten()).view(-1, size, dim).float()
        mean[start : start + step] = torch.bmm(weight[head, block][:, None], tile)[:, 0]
    return mean.view(heads, blocks, dim)
