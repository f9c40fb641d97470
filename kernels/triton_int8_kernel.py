"""The Triton kernel of the int8 product. One program makes BM x BN numbers of the result, BK inputs at a time.

Imported by `triton_int8` alone, and only where Triton is there. Rows are K = units * UNIT numbers long, so that loads
of 16 bytes are possible without knowing K. Programs go down BAND rows of tiles before the next column: what they read
of both sides then stays in the cache.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

import triton
import triton.language as tl

INT8_INTS = ("tokens", "outputs", "units")
BAND = tl.constexpr(8)


@triton.jit
def _tile(tokens, outputs, BM: tl.constexpr, BN: tl.constexpr):
    """Row and column of this program's tile."""
    down, across = tl.cdiv(tokens, BM), tl.cdiv(outputs, BN)
    band = tl.program_id(0) // (BAND * across)
    height = tl.minimum(down - band * BAND, BAND)
    place = tl.program_id(0) % (BAND * across)
    return band * BAND + place % height, place // height


@triton.jit(do_not_specialize=INT8_INTS)
def int8_kernel(
    x, weight, steps, scale, bias, out, tokens, outputs, units,
    BIASED: tl.constexpr, EVEN: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out = (x @ weight.T) * steps * scale + bias; grid (tiles,). EVEN: BK divides K"""
    i, j = _tile(tokens, outputs, BM, BN)
    inputs = units * UNIT
    m, n, k = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN), tl.arange(0, BK)
    has_m, has_n = m < tokens, n < outputs
    x_at = x + m.to(tl.int64)[:, None] * inputs + k[None, :]
    weight_at = weight + n.to(tl.int64)[:, None] * inputs + k[None, :]
    total = tl.zeros((BM, BN), tl.int32)
    for start in range(0, inputs, BK):
        if EVEN:
            a = tl.load(x_at, mask=has_m[:, None], other=0)
            b = tl.load(weight_at, mask=has_n[:, None], other=0)
        else:
            has_k = (start + k < inputs)[None, :]
            a = tl.load(x_at, mask=has_m[:, None] & has_k, other=0)
            b = tl.load(weight_at, mask=has_n[:, None] & has_k, other=0)
        total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
        x_at += BK
        weight_at += BK
    step = tl.load(steps + m, mask=has_m, other=0.0)[:, None]
    number = total.to(tl.float32) * step * tl.load(scale + n, mask=has_n, other=0.0)[None, :]
    if BIASED:
        number += tl.load(bias + n, mask=has_n, other=0.0).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(out + at, number.to(out.dtype.element_ty), mask=has_m[:, None] & has_n[None, :])
