"""The Triton kernel of the weighted sum. One program takes BLOCK numbers of one row, of all tensors.

Imported by `triton_weighted_sum` alone, and only where Triton is there. Length and distances come in units of UNIT
numbers, 8 where they are multiples of it: so masks and addresses allow loads of 16 bytes without Triton knowing them.
"""
# K tensors   R rows   M numbers of a row   parts = ceil(M / BLOCK)

from __future__ import annotations

import triton
import triton.language as tl

from .triton_attend_kernel import INTERPRETED

__all__ = ["INTERPRETED", "sum_kernel"]

SUM_INTS = (*(f"s{k}" for k in range(8)), "length", "parts")


@triton.jit
def _numbers(x, step, row, at, here, UNIT: tl.constexpr):
    """Numbers of one row in float32; where not `here`, 0 and not read. [BLOCK]"""
    return tl.load(x + row * step * UNIT + at, mask=here, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SUM_INTS)
def sum_kernel(
    x0, x1, x2, x3, x4, x5, x6, x7, w0, w1, w2, w3, w4, w5, w6, w7, s0, s1, s2, s3, s4, s5, s6, s7,
    out, length, parts, K: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = sum over k < K of w_k * x_k in float32; grid (R * parts,).

    x0 ... x7: rows of M numbers, s0 ... s7 units apart; out: [R, M]
    """
    row = (tl.program_id(0) // parts).to(tl.int64)
    at = (tl.program_id(0) % parts).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = length.to(tl.int64) * UNIT
    here = at < size
    total = w0 * _numbers(x0, s0, row, at, here, UNIT)
    if K > 1:
        total += w1 * _numbers(x1, s1, row, at, here, UNIT)
    if K > 2:
        total += w2 * _numbers(x2, s2, row, at, here, UNIT)
    if K > 3:
        total += w3 * _numbers(x3, s3, row, at, here, UNIT)
    if K > 4:
        total += w4 * _numbers(x4, s4, row, at, here, UNIT)
    if K > 5:
        total += w5 * _numbers(x5, s5, row, at, here, UNIT)
    if K > 6:
        total += w6 * _numbers(x6, s6, row, at, here, UNIT)
    if K > 7:
        total += w7 * _numbers(x7, s7, row, at, here, UNIT)
    tl.store(out + row * size + at, total.to(out.dtype.element_ty), mask=here)
