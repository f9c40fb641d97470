"""The Triton kernel of the error of pooling. One program takes M queries of one head past some key blocks.

Imported by `triton_pooling_error` alone, and only where Triton is there. Logits are in units of log 2. Strides come in
units of 8 numbers, and no length or stride is specialised on, as in `triton_attend_kernel`.
"""
# B batch   N tokens   H heads   D head dim   DP D padded to a power of two   R heads of a call, from `first` on
# C queries   P key blocks   S slots per block   SP S padded to a power of two   M queries of a program

from __future__ import annotations

import triton
import triton.language as tl

from .triton_attend_kernel import UNIT, _rows

LOWEST = tl.constexpr(-3.0e38)
ERROR_INTS = (
    *("first", "queries", "blocks", "heads", "share", "span", "S"),
    *("k_b", "k_n", "k_h", "v_b", "v_n", "v_h"),
)


@triton.jit(do_not_specialize=ERROR_INTS)
def error_kernel(
    query, k, v, slots, value, pooled, weight, errors, tops,
    scale, first, queries, blocks, heads, share, span, S, k_b, k_n, k_h, v_b, v_n, v_h,
    D: tl.constexpr, DP: tl.constexpr, SP: tl.constexpr, M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Blocks span * n .. span * (n + 1) of every head; grid (R * ceil(P / span) * ceil(C / M),).

    query: fp32 [R, C, D]; k, v: [B, N, H, D] at their strides; slots: [G, P, S]; value: fp32 [G, P, D]
    pooled: fp32 [R, P, C], logits of the mean keys; weight: fp32 [X, P, S], 0 on padding, X = G / share
    tops: fp32 [R, P, C], the largest logit of a block; errors: the same, relative to it
    SPLIT: queries as a sum of three numbers of 8 bits, for products in bfloat16 that lose nothing of float32
    """
    parts, spans = tl.cdiv(queries, M), tl.cdiv(blocks, span)
    r = (tl.program_id(0) // (parts * spans)).to(tl.int64)
    g = first + r
    i = (tl.program_id(0) % parts) * M + tl.arange(0, M)
    begin = (tl.program_id(0) // parts) % spans * span
    whole = _rows(query + r * queries * D, tl.where(i < queries, i, -1), D // UNIT, D, DP)
    if SPLIT:
        high = whole.to(tl.bfloat16)
        rest = whole - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    k += (g // heads * k_b + g % heads * k_h) * UNIT
    v += (g // heads * v_b + g % heads * v_h) * UNIT
    s, d = tl.arange(0, SP), tl.arange(0, DP)
    for p in range(begin, tl.minimum(begin + span, blocks)):
        at = (g * blocks + p) * S + s
        tokens = tl.load(slots + at, mask=s < S, other=-1)
        w = tl.load(weight + (g // share * blocks + p) * S + s, mask=s < S, other=0.0)
        key = _rows(k, tokens, k_n, D, DP)
        if SPLIT:
            score = tl.dot(low, tl.trans(key))
            score = tl.dot(middle, tl.trans(key), score)
            score = tl.dot(high, tl.trans(key), score)
        else:
            score = tl.dot(whole, tl.trans(key.to(tl.float32)), input_precision="ieee")
        score = tl.where((w > 0)[None, :], score * scale, LOWEST)
        top = tl.max(score, 1)
        e = tl.exp2(score - top[:, None])
        there = (r * blocks + p) * queries + i
        a = tl.exp2(tl.minimum(tl.load(pooled + there, mask=i < queries, other=0.0) - top, 0.0))
        mean = tl.load(value + (g * blocks + p) * D + d, mask=d < D, other=0.0)
        away = mean[None, :] - _rows(v, tokens, v_n, D, DP).to(tl.float32)
        lean, spread = tl.sum(away * mean[None, :], 1), tl.sum(away * away, 1)
        gap, w = a[:, None] - e, w * w
        error = gap * (gap * (w * tl.sum(mean * mean))[None, :] + 2 * e * (w * lean)[None, :])
        error += e * e * (w * spread)[None, :]
        tl.store(errors + there, tl.sum(error, 1), mask=i < queries)
        tl.store(tops + there, top, mask=i < queries)
