"""The Triton kernel of block mass. One program takes M rows of one query block and one head past all key blocks.

Imported by `triton_mass` alone, and only where Triton is there. Tiles, units and tables are those of
`triton_attend_kernel`: logits in units of log 2, strides in units of 8 numbers, no length or stride specialised on.
"""
# B batch   H heads   D head dim   DP D padded to a power of two   G = B * H, program g is head g % H of entry g // H
# Q query blocks   K key blocks   R rows read of a query block   SK slots per key block   SP SK padded to a power of two
# M rows of a program   N key slots of a step   E key blocks of a step

from __future__ import annotations

import triton
import triton.language as tl

from .triton_attend_kernel import UNIT, _rows

LOG2E = tl.constexpr(1.4426950408889634)

MASS_INTS = (
    *("heads", "q_tokens", "Q", "K", "R", "SK"),
    *("q_b", "q_n", "q_h", "k_b", "k_n", "k_h"),
    *("rows_geo", "k_geo", "bias_share"),
)


MASS_TABLES = ("lse", "rows", "k_slots", "slot_bias", "found")  # slices of them begin anywhere


@triton.jit
def _slots(start, K, SK, N: tl.constexpr, SP: tl.constexpr):
    """Where N key slots from `start` on are in a head's table, whose blocks count as SP; -1 where there is none. [N]"""
    at = start + tl.arange(0, N)
    block, slot = at // SP, at % SP
    return tl.where((block < K) & (slot < SK), block * SK + slot, -1)


@triton.jit(do_not_specialize=MASS_INTS, do_not_specialize_on_alignment=MASS_TABLES)
def mass_kernel(
    q, k, lse, rows, k_slots, slot_bias, found,
    scale, heads, q_tokens, Q, K, R, SK,
    q_b, q_n, q_h, k_b, k_n, k_h, rows_geo, k_geo, bias_share,
    D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums of exp(logit - lse) over pieces of M rows; grid (G * Q * ceil(R / M),).

    q, k: [B, tokens, H, D] at their strides; lse: fp32 [B, tokens, H]
    rows: tokens [1 or G, Q, R]; k_slots: [1 or G, K, SK]; *_geo: 1 where there is a table per head, else 0
    slot_bias: fp32 [X, K, SK] in units of log 2, -inf on padding; X = G / bias_share
    found: fp32 [ceil(R / M), G, Q, K]
    """
    E: tl.constexpr = N // SP if SP < N else 1
    parts = tl.cdiv(R, M)
    part = tl.program_id(0) % parts
    row = (tl.program_id(0) // parts).to(tl.int64)  # g * Q + i
    g = row // Q
    b, h = g // heads, g % heads
    at = part * M + tl.arange(0, M)
    tokens = tl.load(rows + (row - g * Q + g * rows_geo * Q) * R + at, mask=at < R, other=-1)
    query = _rows(q + (b * q_b + h * q_h) * UNIT, tokens, q_n, D, DP)
    whole = tl.load(lse + (b * q_tokens + tokens) * heads + h, mask=tokens >= 0, other=float("-inf"))
    shift = tl.where(whole == float("-inf"), whole, -whole * LOG2E)[:, None]  # rows that saw nothing, and padding: 0
    k += (b * k_b + h * k_h) * UNIT
    k_slots += g * k_geo * K * SK
    slot_bias += g // bias_share * K * SK
    found += (part.to(tl.int64) * (tl.num_programs(0) // parts) + row) * K
    total = tl.zeros([N], tl.float32)
    # As in block attention, a step reads keys at tokens that the step before has read.
    here = _slots(0, K, SK, N, SP)
    keys = tl.load(k_slots + here, mask=here >= 0, other=-1)
    for start in range(0, K * SP, N):
        key = _rows(k, keys, k_n, D, DP)
        bias = tl.load(slot_bias + here, mask=here >= 0, other=float("-inf"))
        here = _slots(start + N, K, SK, N, SP)
        keys = tl.load(k_slots + here, mask=here >= 0, other=-1)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale + (shift + bias[None, :])
        total += tl.sum(tl.exp2(score), 0)
        block = start // SP + tl.arange(0, E)
        if SP <= N:
            tl.store(found + block, tl.sum(tl.reshape(total, [E, N // E]), 1), mask=block < K)
            total = tl.zeros([N], tl.float32)
        else:
            last = (start + N) % SP == 0
            tl.store(found + block, tl.sum(total)[None], mask=(block < K) & last)
            total = tl.where(last, 0.0, total)
