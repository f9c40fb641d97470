"""Block mass on any device: a tile of the score matrix at a time, from gathered queries and keys, in fp32.

Products stay fp32 for half precision inputs too. Logits rounded to bfloat16 took 0.6 of the time on one core with
bfloat16 units, and moved the mass of a block by 0.05 % on average and 0.8 % at most where logits reach 24, by 0.3 % and
3.5 % where they reach 75 (4096 tokens, D 128): too much for a number that others are measured by.

Extra memory, in bytes, beside the inputs and the result: max_bytes, or what one query block against one key block needs
where that is more; 24 X K S for the key slots' bias, X = 1, B or B H; 24 G Q R where only R rows of a block are read;
q and k once more where they are not tables of rows as stored (see `head_rows`).
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block
# R rows of a query block   n m query and key blocks of a tile

from __future__ import annotations

import torch
from torch import Tensor

from .head_rows import HeadRows, head_rows
from .mass_call import MassCall
from .pool_blocks import slot_bias

NAME = "gather"

# One core, D 128: 5.0 to 5.5 ns a logit with 2 to 64 MB, 7.0 with 1 MB. Devices want long launches.
CPU_BYTES, DEVICE_BYTES = 4 << 20, 256 << 20


def why_not(call: MassCall) -> str | None:
    """It takes every call that `MassCall.why_not` lets through."""
    return None


def mass(call: MassCall) -> Tensor:
    """fp32 [B * H, Q, K]; the contract is that of `block_mass`."""
    slots, stands_for = call.rows_read()
    q, k, lse, k_slots = head_rows(call.q), head_rows(call.k), head_rows(call.lse[..., None]), call.plan.k_slots
    bias = slot_bias(k_slots, call.key_bias, call.q.shape[2])
    every = torch.arange(len(q.first), device=call.q.device)
    found = torch.empty(len(every), slots.shape[1], k_slots.shape[1], device=call.q.device)
    some_q, some_k = _tile(call, slots.shape[2])
    for g, head in enumerate(every.split(1)):
        key_bias, key_blocks = bias[g * len(bias) // len(every)], k_slots[g % len(k_slots)]
        for j in range(0, found.shape[2], some_k):
            columns = slice(j, j + some_k)
            key = k.take(key_blocks[columns].flatten()[None], head)[0].float().T
            for i in range(0, found.shape[1], some_q):
                tokens = slots[g % len(slots), i : i + some_q]
                score = _score(q, lse, tokens, head, key, key_bias[columns].flatten(), call.scale)
                weight = score.exp_().view(*tokens.shape, -1, k_slots.shape[2])
                torch.sum(weight, (1, 3), out=found[g, i : i + some_q, columns])
                del score, weight  # the next ones would be made beside them
            del key
    return found if stands_for is None else found.mul_(stands_for[..., None])


def _tile(call: MassCall, rows: int) -> tuple[int, int]:
    """How many query blocks and key blocks meet at a time; half of the bytes are for keys."""
    max_bytes = call.max_bytes
    if max_bytes is None:
        max_bytes = CPU_BYTES if call.q.device.type == "cpu" else DEVICE_BYTES
    token = 8 * call.q.shape[3] + 48  # as stored and in fp32; its number, and what leads to it
    size, keys = call.plan.k_slots.shape[2], call.plan.k_slots.shape[1]
    some_k = min(keys, max(1, max_bytes // 2 // (size * token)))
    return max(1, max_bytes // 2 // (rows * (4 * some_k * size + token))), some_k


def _score(
    q: HeadRows, lse: HeadRows, tokens: Tensor, head: Tensor, key: Tensor, key_bias: Tensor, scale: float
) -> Tensor:
    """Logits less the log-sum-exp of their row, fp32 [n * R, m * S]; -inf on padding and for rows that saw nothing."""
    query = q.take(tokens.flatten()[None], head)[0].float()
    whole = lse.take(tokens.flatten()[None], head)[0]
    unseen = (tokens.flatten() < 0)[:, None] | (whole == -torch.inf)
    return torch.addmm(key_bias, query, key, alpha=scale).sub_(whole.masked_fill_(unseen, torch.inf))
