"""The Triton kernel of block means. One program takes one block of one head: its tokens are read once.

Imported by `triton_pool` alone, and only where Triton is there. Programs of neighbouring heads follow each other, so
that where heads lie side by side whole rows of H * D numbers are read at about the same time.
"""
# B batch   H heads   D head dim   DP D padded to a power of two   G = B * H   K blocks   S slots per block
# M slots of a step

from __future__ import annotations

import triton
import triton.language as tl

POOL_INTS = ("heads", "tokens", "K", "S", "x_b", "x_n", "x_h", "geo")
POOL_TABLES = ("slots", "key_bias", "mean", "square", "mass")
UNIT = tl.constexpr(8)


@triton.jit
def _tokens(x, token, stride, D: tl.constexpr, DP: tl.constexpr):
    """The numbers of some tokens; of padding and past D they are 0 and not read. fp32 [M, DP]"""
    d, here = tl.arange(0, DP), (token >= 0)[:, None]
    if D < DP:
        here = here & (d < D)[None, :]
    at = x + (token.to(tl.int64) * stride * UNIT)[:, None] + d[None, :]
    return tl.load(at, mask=here, other=0.0).to(tl.float32)


@triton.jit
def _bias(key_bias, token):
    """Bias of some tokens, -inf on padding. [M]"""
    return tl.load(key_bias + token, mask=token >= 0, other=float("-inf"))


@triton.jit(do_not_specialize=POOL_INTS, do_not_specialize_on_alignment=POOL_TABLES)
def pool_kernel(
    x, slots, key_bias, mean, square, mass, heads, tokens, K, S, x_b, x_n, x_h, geo,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """Weighted means of the tokens of a block, of their squares too, and the log of the weight; grid (B * K * H,).

    x: [B, tokens, H, D], strides in units of 8 numbers; slots: int32 [1 or G, K, S], geo 1 where there is one per head
    key_bias: fp32 [B, tokens], not read unless BIAS; mean, square: fp32 [G, K, D], square not written unless SQUARES
    mass: fp32 [G, K]
    """
    h, block = tl.program_id(0) % heads, (tl.program_id(0) // heads).to(tl.int64)
    b, j = block // K, block % K
    g = b * heads + h
    x += (b * x_b + h * x_h) * UNIT
    slots += (g * geo * K + j) * S
    key_bias += b * tokens
    top = 0.0
    if BIAS:
        top = float("-inf")
        for start in range(0, S, M):
            at = start + tl.arange(0, M)
            token = tl.load(slots + at, mask=at < S, other=-1)
            top = tl.maximum(top, tl.max(_bias(key_bias, token), 0))
        top = tl.where(top == float("-inf"), 0.0, top)
    total, acc, more = 0.0, tl.zeros([DP], tl.float32), 0.0
    if SQUARES:
        more = tl.zeros([DP], tl.float32)
    for start in range(0, S, M):
        at = start + tl.arange(0, M)
        token = tl.load(slots + at, mask=at < S, other=-1)
        weight = tl.where(token >= 0, 1.0, 0.0)
        if BIAS:
            weight = tl.exp(_bias(key_bias, token) - top)
        row = _tokens(x, token, x_n, D, DP)
        total += tl.sum(weight, 0)
        acc += tl.sum(weight[:, None] * row, 0)
        if SQUARES:
            more += tl.sum(weight[:, None] * row * row, 0)
    d = tl.arange(0, DP)
    divisor, out = tl.where(total > 0, total, 1.0), (g * K + j) * D + d
    share = 1.0 / divisor
    tl.store(mean + out, acc * share, mask=d < D)
    if SQUARES:
        tl.store(square + out, more * share, mask=d < D)
    tl.store(mass + g * K + j, tl.where(total > 0, top + tl.log(divisor), float("-inf")))
