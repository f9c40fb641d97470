"""Block attention over keys and values that lie in block order, so that a block is one box for the copy engine.

Reading them where they lie costs an address and a test for every 16 bytes. Of the 777 instructions that a warp issues
for a step of 128 queries and 64 keys on compute capability 9.0, that is half: 424 are left when the keys lie in order,
387 with two blocks a step and 308 where no key has a bias. Two warps of each scheduler issue them in turn, and the
matrix products of the step take 1024 cycles, so only the latter three leave the matrix units the bottleneck. (Counted
in the machine code that Triton 3.6 makes; not timed.) The copy itself moves 3 GB for Wan at 720p, under a millisecond
at the bandwidth of such cards, where dense attention takes 0.2 seconds.

Names, units and tables are those of `triton_attend_kernel`.
"""
# B batch   H heads   D head dim   DP D padded to a power of two   G = B * H   L heads of a chunk, from `head` on
# Q query blocks   K key blocks   C longest list   SQ SK slots per block   SP SK padded to a power of two
# M query slots of a program   U key blocks of a step: 1 or 2   N pooled keys of a step of the tail

from __future__ import annotations

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .triton_attend_kernel import ATTEND_TABLES, LN2, LOWEST, UNIT, _rows, _write

__all__ = ["TensorDescriptor", "lay_out_kernel", "ordered_kernel"]

LAY_OUT_INTS = ("head", "heads", "K", "SK", "x_b", "x_n", "x_h", "geo")
ORDERED_INTS = (
    *("head", "heads", "q_tokens", "Q", "K", "C", "W", "SQ", "q_b", "q_n", "q_h", "q_geo", "bias_share"),
    *("cols_geo", "counts_geo", "counts_step", "words_geo", "full_0", "past_0", "full_1", "past_1"),
)
# The bias of the slots is a tensor of its own, so always aligned: loads of 16 bytes instead of 4, a tenth of the loop.
ORDERED_TABLES = tuple(name for name in ATTEND_TABLES if name != "slot_bias")


@triton.jit(do_not_specialize=LAY_OUT_INTS, do_not_specialize_on_alignment=("slots",))
def lay_out_kernel(
    x, slots, out, head, heads, K, SK, x_b, x_n, x_h, geo, D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr
):
    """One block of one head in block order, 0 where a slot is empty; grid (L * K,).

    x: [B, tokens, H, D] at its strides; slots: [1 or G, K, SK]; out: [L, K, SP, D]
    """
    block, g = tl.program_id(0) % K, (head + tl.program_id(0) // K).to(tl.int64)
    slot, d = tl.arange(0, SP), tl.arange(0, DP)
    tokens = tl.load(slots + (g * geo * K + block) * SK + slot, mask=slot < SK, other=-1)
    rows = _rows(x + (g // heads * x_b + g % heads * x_h) * UNIT, tokens, x_n, D, DP)
    at = (tl.program_id(0).to(tl.int64) * SP + slot)[:, None] * D + d[None, :]
    tl.store(out + at, rows, mask=(d < D)[None, :])


@triton.jit(do_not_specialize=LAY_OUT_INTS, do_not_specialize_on_alignment=("slots", "middle", "steps"))
def lay_out_int8_kernel(
    x, slots, middle, out, steps, head, heads, K, SK, x_b, x_n, x_h, geo,
    D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """As `lay_out_kernel`, less the middle of the head and rounded to int8 by one step size for the block.

    middle: fp32 [G, D]; out: int8 [L, K, SP, D]; steps: fp32 [L, K]
    """
    block, g = tl.program_id(0) % K, (head + tl.program_id(0) // K).to(tl.int64)
    slot, d = tl.arange(0, SP), tl.arange(0, DP)
    tokens = tl.load(slots + (g * geo * K + block) * SK + slot, mask=slot < SK, other=-1)
    rows = _rows(x + (g // heads * x_b + g % heads * x_h) * UNIT, tokens, x_n, D, DP).to(tl.float32)
    rows -= tl.load(middle + g * D + d, mask=d < D, other=0.0)[None, :]
    rows = tl.where((tokens >= 0)[:, None], rows, 0.0)
    step = tl.maximum(tl.max(tl.abs(rows)) / 127, 1e-30)
    at = (tl.program_id(0).to(tl.int64) * SP + slot)[:, None] * D + d[None, :]
    tl.store(out + at, _nearest(rows / step), mask=(d < D)[None, :])
    tl.store(steps + tl.program_id(0), step)


@triton.jit
def _nearest(x):
    """The nearest whole number, for numbers of at most 127; halves away from 0."""
    return (x + tl.where(x < 0, -0.5, 0.5)).to(tl.int8)


@triton.jit
def _scores(query, keys, row, bias, scale, BIASED: tl.constexpr, SCALED: tl.constexpr):
    """Logits of one block in units of log 2, or, unless SCALED, what `scale` makes logits of. [M, SP]

    scale: a number, or [M, 1] where query and keys are int8
    """
    key = tl.trans(keys.load([row, 0]))
    score = tl.dot(query, key, input_precision="ieee").to(tl.float32)
    if SCALED:
        score *= scale
    if BIASED:
        score += bias[None, :]
    return score


@triton.jit
def _highest(score, scale, SCALED: tl.constexpr):
    """The highest logit of each row; `scale` is above 0 where it is still to come. [M]"""
    most = tl.max(score, 1)
    if not SCALED:
        most *= scale
    return most


@triton.jit
def _weights(score, top, scale, SCALED: tl.constexpr):
    """[M, SP]"""
    if SCALED:
        return tl.exp2(score - top[:, None])
    return tl.exp2(score * scale - top[:, None])


@triton.jit
def _step(
    query, keys, values, row, bias, scale, top, total, acc, BIASED: tl.constexpr, SCALED: tl.constexpr
):  # fmt: skip
    """One step of the online softmax over one block; row: its first in keys and values. top, total [M]; acc [M, DP]"""
    score = _scores(query, keys, row, bias, scale, BIASED, SCALED)
    higher = tl.maximum(top, _highest(score, scale, SCALED))
    shrink, weight = tl.exp2(top - higher), _weights(score, higher, scale, SCALED)
    value = values.load([row, 0])
    acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
    return higher, total * shrink + tl.sum(weight, 1), acc


@triton.jit
def _block_bias(
    slot_bias, steps, block, slot, grain, SP: tl.constexpr, BIASED: tl.constexpr, INT8: tl.constexpr
):  # fmt: skip
    """The bias of a block's keys, [SP] or any number, and what makes logits of its products, [M, 1] or one number."""
    bias, unit = 0.0, grain
    if BIASED:
        bias = tl.load(slot_bias + block * SP + slot)
    if INT8:
        unit = (grain * tl.load(steps + block))[:, None]
    return bias, unit


@triton.jit
def _unkept_of_row(words, mass, start, K, W, N: tl.constexpr):
    """As `_unkept` for one row of the map, from N / 32 words instead of one load a column. [N]"""
    n, at = tl.arange(0, N), start // 32
    word = tl.load(words + at, mask=at < W, other=-1)
    for part in tl.static_range(1, N // 32):
        word = tl.where(n < part * 32, word, tl.load(words + at + part, mask=at + part < W, other=-1))
    bias = tl.load(mass + start + n, mask=start + n < K, other=float("-inf"))
    return tl.where(((word >> (n % 32)) & 1) == 0, bias, float("-inf"))


@triton.jit
def _place(program, parts, L, Q, full_0, past_0, full_1, past_1):
    """Head of the chunk, query block and its part of a program: full blocks of all heads first, for they take longest.

    returns: head, block, part, whether it is full
    """
    first, second = past_0 - full_0, past_1 - full_1
    early = L * (first + second) * parts
    full = program < early
    blocks = tl.where(full, first + second, Q - first - second)
    at = tl.where(full, program, program - early)
    i = (at // parts) % blocks
    listed = tl.where(i >= full_0, i + first, i)
    listed = tl.where(listed >= full_1, listed + second, listed)
    return at // (parts * blocks), tl.where(full, tl.where(i < first, full_0 + i, full_1 + i - first), listed), \
        at % parts, full


@triton.jit(do_not_specialize=ORDERED_INTS, do_not_specialize_on_alignment=ORDERED_TABLES)
def ordered_kernel(
    q, keys, values, out, lse, q_slots, cols, counts, slot_bias,
    tail_keys, tail_values, tail_v, tail_mass, words, rho, residual, middle, steps,
    scale, head, heads, q_tokens, Q, K, C, W, SQ, q_b, q_n, q_h,
    q_geo, bias_share, cols_geo, counts_geo, counts_step, words_geo, full_0, past_0, full_1, past_1,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SP: tl.constexpr, U: tl.constexpr,
    TAIL: tl.constexpr, BIASED: tl.constexpr, INT8: tl.constexpr, RESHAPE: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """All query blocks of L heads; grid (L * Q * ceil(SQ / M),).

    keys, values: descriptors of [L * K * SP, D], boxes of [SP, DP]
    slot_bias: fp32 [X, K, SP] in units of log 2, -inf on padding; not read unless BIASED
    TAIL "row": tail_keys, tail_values: descriptors of [G * K, D], boxes of [N, DP]
    INT8: keys, middle and steps are those of `lay_out_int8_kernel`, and queries are rounded to int8 by row
    full_0 .. past_0, full_1 .. past_1: query blocks that see everything and have no tail, ascending, may be empty
    """
    SCALED: tl.constexpr = BIASED or INT8
    parts = tl.cdiv(SQ, M)
    L = tl.num_programs(0) // (Q * parts)
    local, i, part, full = _place(tl.program_id(0), parts, L, Q, full_0, past_0, full_1, past_1)
    g = (head + local).to(tl.int64)
    b, h = g // heads, g % heads
    slot = part * M + tl.arange(0, M)
    tokens = tl.load(q_slots + (g * q_geo * Q + i) * SQ + slot, mask=slot < SQ, other=-1)
    query = _rows(q + (b * q_b + h * q_h) * UNIT, tokens, q_n, D, DP)
    slot_bias += g // bias_share * K * SP
    cols += (g * cols_geo * Q + i) * C
    top, total = tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DP], tl.float32)
    if TAIL == "block":
        mass, d = tl.load(tail_mass + g * Q + i), tl.arange(0, DP)
        mass = tl.where(full, float("-inf"), mass)
        top, total = tl.maximum(top, mass), total + tl.where(mass > float("-inf"), 1.0, 0.0)
        mean = tl.load(tail_v + (g * Q + i) * D + d, mask=d < D, other=0.0)
        acc += tl.where(full, 0.0, mean)[None, :]
    if TAIL == "row":
        for start in range(0, tl.where(full, 0, K), N):
            bias = _unkept_of_row(words + (g * words_geo * Q + i) * W, tail_mass + g * K, start, K, W, N)
            row = (g * K).to(tl.int32) + start
            top, total, acc = _step(query, tail_keys, tail_values, row, bias, scale, top, total, acc, True, True)

    kept = tl.where(full, K, tl.minimum(tl.load(counts + g * counts_geo + i * counts_step), C))
    base, s = local * K, tl.arange(0, SP)
    shift, grain = 0.0, scale
    if INT8:
        # What all logits of a row have in common changes no softmax: the middle of the keys waits for the end.
        d, wide = tl.arange(0, DP), query.to(tl.float32)
        shift = tl.sum(wide * tl.load(middle + g * D + d, mask=d < D, other=0.0)[None, :], 1) * scale
        grain = tl.maximum(tl.max(tl.abs(wide), 1) / 127, 1e-30)
        query = _nearest(wide / grain[:, None])
        grain *= scale
        top -= shift
    # The numbers of a step's blocks are loaded one step ahead. A step that took them from two steps ahead would have to
    # hand a value on untouched, and Triton does not pipeline a loop that does.
    block = tl.where(full, 0, tl.load(cols, mask=kept > 0, other=0))
    other = block
    if U == 2:
        other = tl.where(full, 1, tl.load(cols + 1, mask=kept > 1, other=0))
    for start in range(0, kept // U * U, U):
        bias, unit = _block_bias(slot_bias, steps + base, block, s, grain, SP, BIASED, INT8)
        if U == 1:
            top, total, acc = _step(
                query, keys, values, (base + block) * SP, bias, unit, top, total, acc, BIASED, SCALED
            )
        else:
            one = _scores(query, keys, (base + block) * SP, bias, unit, BIASED, SCALED)
            more, step = _block_bias(slot_bias, steps + base, other, s, grain, SP, BIASED, INT8)
            two = _scores(query, keys, (base + other) * SP, more, step, BIASED, SCALED)
            higher = tl.maximum(_highest(one, scale, SCALED), _highest(two, scale, SCALED))
            higher = tl.maximum(top, higher)
            shrink = tl.exp2(top - higher)
            one, two = _weights(one, higher, scale, SCALED), _weights(two, higher, scale, SCALED)
            top, total = higher, total * shrink + tl.sum(one, 1) + tl.sum(two, 1)
            value = values.load([(base + block) * SP, 0])
            acc = tl.dot(one.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
            value = values.load([(base + other) * SP, 0])
            acc = tl.dot(two.to(value.dtype), value, acc, input_precision="ieee")
            other = tl.load(cols + start + 3, mask=(start + 3 < kept) & (not full), other=0)
            other = tl.where(full, start + 3, other)
        block = tl.load(cols + start + U, mask=(start + U < kept) & (not full), other=0)
        block = tl.where(full, start + U, block)
    if kept % U == 1:
        bias, unit = _block_bias(slot_bias, steps + base, block, s, grain, SP, BIASED, INT8)
        top, total, acc = _step(
            query, keys, values, (base + block) * SP, bias, unit, top, total, acc, BIASED, SCALED
        )

    row, divisor = (b * q_tokens + tokens) * heads + h, tl.where(total > 0, total, 1.0)
    factor = 1.0 / divisor
    if RESHAPE != "no":
        factor *= tl.minimum(tl.load(rho + row, mask=tokens >= 0, other=0.0), 1.0)
    _write(out, residual, row, tokens >= 0, acc * factor[:, None], 0, D, DP, RESHAPE)
    if LSE:
        whole = (top + shift + tl.log2(divisor)) * LN2
        tl.store(lse + row, tl.where(total > 0, whole, float("-inf")), mask=tokens >= 0)
