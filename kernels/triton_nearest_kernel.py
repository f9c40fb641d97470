"""The Triton kernel of the nearest centroid. One program takes M tokens of one head past all centroids, N at a time.

Imported by `triton_nearest` alone, and only where Triton is there. Strides come in units of 8 numbers, and no length or
stride is specialised on, as in `triton_attend_kernel`.
"""
# B batch   H heads   D head dim   DP D padded to a power of two   G = B * H, program g is head g % H of entry g // H
# C centroids, padded to a multiple of N   M tokens of a program   N centroids of a step

from __future__ import annotations

import triton
import triton.language as tl

from .triton_attend_kernel import UNIT, _rows

NEAREST_INTS = ("tokens", "clusters", "heads", "x_b", "x_n", "x_h")


@triton.jit(do_not_specialize=NEAREST_INTS)
def nearest_kernel(
    x, centroids, lift, labels, tokens, clusters, heads, x_b, x_n, x_h,
    D: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """labels = the first j with the most x c_j + lift_j, of each token; grid (G * ceil(tokens / M),).

    x: [B, tokens, H, D] at its strides; centroids: [G, C, D], as precise as x; lift: fp32 [G, C + N], -inf where there
    is no centroid; labels: int32 [G, tokens]

    The best of each column of the tile and its step stay in registers: three operations a product, where the first of
    the most in every step takes four and exchanges between threads.
    """
    parts = tl.cdiv(tokens, M)
    g = (tl.program_id(0) // parts).to(tl.int64)
    i = (tl.program_id(0) % parts) * M + tl.arange(0, M)
    row = _rows(x + (g // heads * x_b + g % heads * x_h) * UNIT, tl.where(i < tokens, i, -1), x_n, D, DP)
    n, d = tl.arange(0, N), tl.arange(0, DP)
    centroid = centroids + g * clusters * D + n[:, None] * D + d[None, :]
    lift += g * (clusters + N) + n
    best, which = tl.full([M, N], float("-inf"), tl.float32), tl.zeros([M, N], tl.int32)
    coming = tl.load(lift)  # a step ahead: it is needed right after the product
    for start in range(0, clusters, N):
        c = tl.load(centroid, mask=(d < D)[None, :], other=0.0) if D < DP else tl.load(centroid)
        centroid += N * D
        up = coming
        lift += N
        coming = tl.load(lift)
        score = tl.dot(row, tl.trans(c), input_precision="ieee") + up[None, :]
        higher = score > best
        which = tl.where(higher, start, which)
        best = tl.where(higher, score, best)
    top = tl.max(best, 1)
    label = tl.min(tl.where(best == top[:, None], which + n[None, :], clusters), 1)
    tl.store(labels + g * tokens + i, label, mask=i < tokens)
