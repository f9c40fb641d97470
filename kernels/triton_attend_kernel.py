"""The Triton kernels of block attention: the online softmax over kept blocks, the block tail, the map of kept blocks.

Imported by `triton_attend` alone, and only where Triton is there. One program of `attend_kernel` takes M query slots of
one block and one head, and walks the block's list N key slots at a time. Logits are in units of log 2. A bias per key
slot holds all that only shifts a logit: key bias, padding, log mass, "kept already".

Triton must not specialise on a length or a stride, so that no clip size compiles anything anew. Strides come in units
of 8 numbers: loads of 16 bytes stay possible without knowing a stride.
"""
# B batch   H heads   D head dim   DP D padded to a power of two   DA columns of one accumulator: DP or half of it
# G = B * H, program g is head g % H of entry g // H   Q query blocks   K key blocks   C longest list
# SQ SK slots per block   QP SP the same padded to powers of two   W = ceil(K / 32) words of a row's map
# M query slots of a program   N key slots of a step

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton itself found it when it made the functions below

LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.0e38)  # the largest logit of nothing: finite, so that no difference of infinities arises
UNIT = tl.constexpr(8)

ATTEND_INTS = (
    *("first", "blocks", "heads", "q_tokens", "Q", "K", "C", "W", "SQ", "SK"),
    *("q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h"),
    *("q_geo", "k_geo", "bias_share", "cols_geo", "counts_geo", "counts_step", "words_geo"),
)
ATTEND_TABLES = ("q_slots", "k_slots", "cols", "counts", "slot_bias", "rho", "lse")


@triton.jit
def _rows(base, tokens, stride, D: tl.constexpr, DP: tl.constexpr):
    """The rows of some tokens, [tokens, DP]; token -1 and columns past D are 0 and not read."""
    d = tl.arange(0, DP)
    here = (tokens >= 0)[:, None]
    if D < DP:
        here = here & (d < D)[None, :]
    return tl.load(base + (tokens.to(tl.int64) * stride * UNIT)[:, None] + d[None, :], mask=here, other=0.0)


@triton.jit
def _fold(q, k, v, w, bias, scale, top, total, acc, more):
    """One step of the online softmax.

    q [M, DP]; k [N, DP]; v, w: the values, [N, DA] each, w None when v holds all; bias [M or 1, N]; top, total [M];
    acc, more [M, DA]: what v and w add up to
    """
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
    higher = tl.maximum(top, tl.max(score, 1))
    shrink = tl.exp2(top - higher)
    weight = tl.exp2(score - higher[:, None])
    total = total * shrink + tl.sum(weight, 1)
    weight = weight.to(v.dtype)
    acc = tl.dot(weight, v, acc * shrink[:, None], input_precision="ieee")
    if w is not None:
        more = tl.dot(weight, w, more * shrink[:, None], input_precision="ieee")
    return higher, total, acc, more


@triton.jit
def _unkept(words, mass, start, K, N: tl.constexpr):
    """Bias of N pooled keys for rows of the map at words, [M, 1] or one: log mass, -inf on kept blocks. [M or 1, N]"""
    j = start + tl.arange(0, N)[None, :]
    word = tl.load(words + j // 32, mask=j < K, other=-1)
    bias = tl.load(mass + j, mask=j < K, other=float("-inf"))
    return tl.where(((word >> (j % 32)) & 1) == 0, bias, float("-inf"))


@triton.jit
def _block(cols, start, kept, N: tl.constexpr, SP: tl.constexpr, FULL: tl.constexpr):
    """The key blocks of the step at `start`, -1 past the list: one number, or [N] where several fit into a step."""
    at = start
    if SP < N:
        at = start + tl.arange(0, N)
    entry = at // SP
    block = tl.where(entry < kept, entry, -1)
    if not FULL:
        block = tl.load(cols + entry, mask=entry < kept, other=-1)
    return block


@triton.jit
def _slots(block, start, SK, N: tl.constexpr, SP: tl.constexpr):
    """Where the key slots of the step at `start` are in a head's table, -1 where there is none. [N]"""
    slot = start % SP + tl.arange(0, N)
    if SP < N:
        slot = slot % SP
    return tl.where((block >= 0) & (slot < SK), block * SK + slot, -1)


@triton.jit
def _write(out, residual, row, live, acc, start, D: tl.constexpr, DA: tl.constexpr, RESHAPE: tl.constexpr):
    """Columns start .. start + DA of some output rows."""
    d = start + tl.arange(0, DA)
    at, here = (row * D)[:, None] + d[None, :], live[:, None] & (d < D)[None, :]
    if RESHAPE == "both":
        acc += tl.load(residual + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=ATTEND_INTS, do_not_specialize_on_alignment=ATTEND_TABLES)
def attend_kernel(
    q, k, v, out, lse, q_slots, k_slots, cols, counts, slot_bias, tail_k, tail_v, tail_mass, words, rho, residual,
    scale, first, blocks, heads, q_tokens, Q, K, C, W, SQ, SK,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, q_geo, k_geo, bias_share, cols_geo, counts_geo, counts_step, words_geo,
    D: tl.constexpr, DP: tl.constexpr, DA: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SP: tl.constexpr,
    TAIL: tl.constexpr, FULL: tl.constexpr, RESHAPE: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """Query blocks first .. first + blocks of every head; grid (G * blocks * ceil(SQ / M),).

    q, k, v: [B, tokens, H, D] at their strides; out, residual: the same, contiguous; lse, rho: fp32 [B, tokens, H]
    q_slots, k_slots, cols, counts: those of BlockPlan, with *_geo 1 where there is a table per head, else 0
    slot_bias: fp32 [X, K, SK] in units of log 2, -inf on padding; X = G / bias_share
    TAIL "row": tail_k, tail_v, tail_mass: block means [G, K, D] and their log masses [G, K] in units of log 2; words:
    the map that `words_kernel` wrote; "block": tail_v, tail_mass: out and lse of `tail_kernel`
    FULL: every key block is kept; RESHAPE: "no", "rho" or "both". What a variant does not read may be any tensor.
    """
    program, parts = tl.program_id(0), tl.cdiv(SQ, M)
    i = first + (program // parts) % blocks
    g = (program // (parts * blocks)).to(tl.int64)
    b, h = g // heads, g % heads
    slot = (program % parts) * M + tl.arange(0, M)
    tokens = tl.load(q_slots + (g * q_geo * Q + i) * SQ + slot, mask=slot < SQ, other=-1)
    query = _rows(q + (b * q_b + h * q_h) * UNIT, tokens, q_n, D, DP)
    k += (b * k_b + h * k_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    k_slots += g * k_geo * K * SK
    slot_bias += g // bias_share * K * SK
    cols += (g * cols_geo * Q + i) * C

    top, total = tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32)
    acc, more = tl.zeros([M, DA], tl.float32), 0.0
    if DA < DP:
        more = tl.zeros([M, DA], tl.float32)
    if TAIL == "block":
        mass, mean = tl.load(tail_mass + g * Q + i), tail_v + (g * Q + i) * D + tl.arange(0, DA)
        top, total = tl.maximum(top, mass), total + tl.where(mass > float("-inf"), 1.0, 0.0)
        acc += tl.load(mean, mask=tl.arange(0, DA) < D, other=0.0)[None, :]
        if DA < DP:
            more += tl.load(mean + DA, mask=tl.arange(0, DA) < D - DA, other=0.0)[None, :]
    if TAIL == "row":
        tail_k += g * K * D
        tail_v += g * K * D
        for start in range(0, K, N):
            j = start + tl.arange(0, N)
            block = tl.where(j < K, j, -1)
            bias = _unkept(words + (g * words_geo * Q + i) * W, tail_mass + g * K, start, K, N)
            key, value, rest = _rows(tail_k, block, D // UNIT, D, DP), _rows(tail_v, block, D // UNIT, D, DA), None
            if DA < DP:
                rest = _rows(tail_v + DA, block, D // UNIT, D - DA, DA)
            top, total, acc, more = _fold(query, key, value, rest, bias, scale, top, total, acc, more)
    kept = K
    if not FULL:
        kept = tl.minimum(tl.load(counts + g * counts_geo + i * counts_step), C)
    # A step reads keys at tokens that the step before has read, in a block that the one before that has read: three
    # loads that wait for each other would leave the matrix units idle and Triton's stages empty.
    here = _slots(_block(cols, 0, kept, N, SP, FULL), 0, SK, N, SP)
    coming = _block(cols, N, kept, N, SP, FULL)
    key_tokens = tl.load(k_slots + here, mask=here >= 0, other=-1)
    for start in range(0, kept * SP, N):
        key, value, rest = _rows(k, key_tokens, k_n, D, DP), _rows(v, key_tokens, v_n, D, DA), None
        if DA < DP:
            rest = _rows(v + DA, key_tokens, v_n, D - DA, DA)
        bias = tl.load(slot_bias + here, mask=here >= 0, other=float("-inf"))
        here = _slots(coming, start + N, SK, N, SP)
        key_tokens = tl.load(k_slots + here, mask=here >= 0, other=-1)
        coming = _block(cols, start + 2 * N, kept, N, SP, FULL)
        top, total, acc, more = _fold(query, key, value, rest, bias[None, :], scale, top, total, acc, more)

    row, divisor = (b * q_tokens + tokens) * heads + h, tl.where(total > 0, total, 1.0)
    factor = 1.0 / divisor
    if RESHAPE != "no":
        factor *= tl.minimum(tl.load(rho + row, mask=tokens >= 0, other=0.0), 1.0)
    _write(out, residual, row, tokens >= 0, acc * factor[:, None], 0, D, DA, RESHAPE)
    if DA < DP:
        _write(out, residual, row, tokens >= 0, more * factor[:, None], DA, D, DA, RESHAPE)
    if LSE:
        tl.store(lse + row, tl.where(total > 0, (top + tl.log2(divisor)) * LN2, float("-inf")), mask=tokens >= 0)


@triton.jit(do_not_specialize=("Q", "K", "W", "words_geo"))
def tail_kernel(
    q, k, v, mass, words, out, lse, scale, Q, K, W, words_geo,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Tail "block" of M query blocks, one row each: softmax over the means of the blocks that are not kept.

    q: block means [G, Q, D]; k, v, mass, words, out, lse: as `attend_kernel` reads them; grid (G * ceil(Q / M),)
    """
    parts = tl.cdiv(Q, M)
    g = (tl.program_id(0) // parts).to(tl.int64)
    i = (tl.program_id(0) % parts) * M + tl.arange(0, M)
    row = g * Q + i
    query = _rows(q + g * Q * D, tl.where(i < Q, i, -1), D // UNIT, D, DP)
    words += ((g * words_geo * Q + tl.where(i < Q, i, 0)) * W)[:, None]
    top, total = tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DP], tl.float32)
    for start in range(0, K, N):
        j = start + tl.arange(0, N)
        block = tl.where(j < K, j, -1)
        bias = _unkept(words, mass + g * K, start, K, N)
        key, value = _rows(k + g * K * D, block, D // UNIT, D, DP), _rows(v + g * K * D, block, D // UNIT, D, DP)
        top, total, acc, _ = _fold(query, key, value, None, bias, scale, top, total, acc, 0.0)
    d, divisor = tl.arange(0, DP), tl.where(total > 0, total, 1.0)
    here = (i < Q)[:, None] & (d < D)[None, :]
    tl.store(out + (row * D)[:, None] + d[None, :], acc / divisor[:, None], mask=here)
    tl.store(lse + row, tl.where(total > 0, top + tl.log2(divisor), float("-inf")), mask=i < Q)


@triton.jit(do_not_specialize=("Q", "K", "C", "W", "cols_geo", "counts_geo", "counts_step"))
def words_kernel(
    cols, counts, words, Q, K, C, W, cols_geo, counts_geo, counts_step, NC: tl.constexpr, NW: tl.constexpr
):
    """Lists as a map: bit j % 32 of word j // 32 says that block j is kept. grid (lists * Q,)

    Adding bits is setting them, because a list names a block once.
    """
    g, i = (tl.program_id(0) // Q).to(tl.int64), tl.program_id(0) % Q
    cols += (g * cols_geo * Q + i) * C
    kept = tl.minimum(tl.load(counts + g * counts_geo + i * counts_step), C)
    for first in range(0, W, NW):
        word, bits = first + tl.arange(0, NW), tl.zeros([NW], tl.int32)
        for start in range(0, kept, NC):
            entry = start + tl.arange(0, NC)
            block = tl.load(cols + entry, mask=entry < kept, other=-1)
            bit = tl.where(block >= 0, 1 << (block % 32), 0)
            bits += tl.sum(tl.where((block // 32)[:, None] == word[None, :], bit[:, None], 0), 0)
        tl.store(words + (g * Q + i) * W + word, bits, mask=word < W)
