"""Attention over a kept list of key blocks; what is not kept can stay in the softmax as one pooled key per block.

One operation for every block-sparse method: a method only writes a BlockPlan. The pooled tail follows Sol-Attn
(arXiv 2607.24027) and SVG-EAR (arXiv 2603.08982); unlike both it honours a key bias and ragged blocks anywhere.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block
# G = 1 (geometry shared by all heads) or B * H   R rows: (head, query block) pairs   W keys that a row sees

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from .block_plan import BlockPlan, kept_mask
from .dense_rows import DenseRows
from .head_rows import head_rows
from .kept_rows import KeptRows, PooledTail, Tail
from .pool_blocks import slot_bias

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Half of it holds gathered keys and values: on one CPU core 1 to 28 MB of them ran alike, 110 MB took 1.5 times as
# long. Devices want long launches.
CPU_BYTES, DEVICE_BYTES = 16 << 20, 256 << 20


def block_attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    tail: Tail | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The whole score matrix of one head at a time; the contract is that of `block_attend`."""
    batch, tokens, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    key_bias = torch.zeros(k.shape[:2], device=k.device) if key_bias is None else key_bias.float()
    keep = kept_mask(plan)
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:3], device=q.device)
    for g in range(batch * heads):
        b, h = divmod(g, heads)
        query, key, value = q[b, :, h].float(), k[b, :, h].float(), v[b, :, h].float()
        in_query = _membership(plan.q_slots[g % len(plan.q_slots)], tokens)  # [Q, N]
        in_key = _membership(plan.k_slots[g % len(plan.k_slots)], k.shape[1])  # [K, N]
        seen = in_query.T @ keep[g % len(keep)].float()  # [N, K]
        score = scale * query @ key.T + key_bias[b]
        score = score.masked_fill(seen @ in_key == 0, -torch.inf)
        if tail:
            weight = in_key * key_bias[b].exp()  # [K, N]
            mass = weight.sum(-1, keepdim=True)
            mean_key, mean_value = weight @ key / mass.clamp(min=1e-30), weight @ value / mass.clamp(min=1e-30)
            if tail == "block":
                query = in_query.T @ (in_query @ query / in_query.sum(-1, keepdim=True).clamp(min=1))
            pooled = scale * query @ mean_key.T + mass.T.log()
            score = torch.cat((score, pooled.masked_fill(seen > 0, -torch.inf)), -1)
            value = torch.cat((value, mean_value))
        lse[b, :, h] = score.logsumexp(-1)
        out[b, :, h] = ((score - lse[b, :, h, None]).exp().nan_to_num(0) @ value).to(q.dtype)
    return (out, lse) if return_lse else out


def _membership(slots: Tensor, tokens: int) -> Tensor:
    """1 where the token sits in the block. slots: [K, S]; returns fp32 [K, N]."""
    return (slots[..., None] == torch.arange(tokens, device=slots.device)).any(1).float()


def why_not(
    q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, *, key_bias: Tensor | None = None, tail: Tail | None = None
) -> str | None:
    """Why the gather backend cannot take this call, or None. Reads shapes only, never the device."""
    batch, _, heads, dim = q.shape
    if q.dtype not in DTYPES or {k.dtype, v.dtype} != {q.dtype}:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; all three must be float32, bfloat16 or float16"
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (batch, heads, dim):
        return f"k is {list(k.shape)} and v {list(v.shape)}; q needs them as [{batch}, N, {heads}, {dim}]"
    if len({x.device for x in (q, k, v, plan.q_slots, plan.k_slots, plan.cols)}) > 1:
        return f"the plan is on {plan.cols.device}, q on {q.device}, k on {k.device} and v on {v.device}"
    for name in ("q_slots", "k_slots", "cols"):
        if (shape := getattr(plan, name).shape)[0] not in (1, batch * heads):
            return f"the plan's {name} serve {shape[0]} heads; the call has {batch * heads}, and 1 would serve all"
    for name, slots, tokens in (("query", plan.q_slots, q.shape[1]), ("key", plan.k_slots, k.shape[1])):
        if slots.shape[1:].numel() < tokens:
            return f"the plan has {slots.shape[1:].numel()} {name} slots for {tokens} tokens"
    if key_bias is not None and key_bias.shape != k.shape[:2]:
        return f"the key bias is {list(key_bias.shape)}; it must be {list(k.shape[:2])}"
    if tail not in (None, "row", "block"):
        return f"the tail is {tail!r}; it must be 'row', 'block' or None"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "gradients are asked for, and this attention is for inference"
    return None


def block_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    tail: Tail | None = None,
    return_lse: bool = False,
    max_bytes: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax over the keys in the kept blocks; any device, by gather and scaled_dot_product_attention.

    tail "row": each block that is not kept enters the softmax as one key, its mean, with the log of its live weight
    added to the logit and its mean value; "block": the same, but all rows of a query block share the logit of their
    mean. A row that nothing is left for is 0, with lse -inf. Accumulates in fp32.

    q, k, v: [B, N, H, D]
    scale: of the logits; None: D ** -0.5
    key_bias: fp32 [B, N], added to the logits, -inf allowed
    max_bytes: workspace beside the output and the block means, or what one query block needs where that is more
    returns: [B, N, H, D] in q's dtype; with return_lse also the natural log-sum-exp of all logits, fp32 [B, N, H]
    raises: ValueError with the reason of `why_not`
    """
    if reason := why_not(q, k, v, plan, key_bias=key_bias, tail=tail):
        raise ValueError(f"Block attention cannot take this call: {reason}.")
    if max_bytes is None:
        max_bytes = CPU_BYTES if q.device.type == "cpu" else DEVICE_BYTES
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dense = DenseRows(k, v, key_bias, scale, return_lse, max_bytes)
    if plan.sees_everything:
        out, lse = dense.attend(q.transpose(1, 2))
        return (out.transpose(1, 2), lse.transpose(1, 2)) if return_lse else out.transpose(1, 2)
    pooled = PooledTail.of(q, k, v, plan, key_bias, tail, scale) if tail else None
    bias = slot_bias(plan.k_slots, key_bias, q.shape[2])
    rows = head_rows(q), head_rows(k), head_rows(v)
    kept = KeptRows(*rows, plan, bias, pooled, scale, return_lse, max_bytes)
    result = _Result(q, return_lse)
    for tile in chain(dense.tiles(q, plan), kept.tiles()):
        result.put(*tile)
    return result.views(q.shape)


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

    def views(self, shape: torch.Size) -> Tensor | tuple[Tensor, Tensor]:
        out = self.out[:-1].view(shape)
        return out if self.lse is None else (out, self.lse[:-1].view(shape[:3]))
