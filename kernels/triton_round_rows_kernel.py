"""The Triton kernel that rotates rows and rounds them to int8. One program takes one row.

Imported by `triton_round_rows` alone, and only where Triton is there.
"""
# K channels   S rotation block

from __future__ import annotations

import triton
import triton.language as tl

ROUND_INTS = ("columns", "step")
TOP, LEAST = tl.constexpr(127.0), tl.constexpr(1e-30)
# Added and taken away again, it leaves a float32 below 2**22 rounded to the nearest whole number, halves to even ones.
WHOLE_NUMBERS = tl.constexpr(12582912.0)


@triton.jit
def _rotated(x, matrix, S: tl.constexpr, SIZE: tl.constexpr, PRECISE: tl.constexpr):
    """Each block of S numbers. x: [SIZE] float32"""
    if S == 1:
        return x
    ROOT: tl.constexpr = 16 if S == 256 else S
    at = tl.arange(0, ROOT)
    h = tl.load(matrix + at[:, None] * ROOT + at[None, :])
    y = tl.dot(tl.reshape(x, (SIZE // ROOT, ROOT)), h, input_precision=PRECISE)
    if S == 256:
        y = tl.permute(tl.reshape(y, (SIZE // S, ROOT, ROOT)), (0, 2, 1))
        y = tl.dot(tl.reshape(y, (SIZE // ROOT, ROOT)), h, input_precision=PRECISE)
        y = tl.permute(tl.reshape(y, (SIZE // S, ROOT, ROOT)), (0, 2, 1))
    return tl.reshape(y, (SIZE,))


@triton.jit
def _part(
    x, mask, matrix, at, columns, S: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, PRECISE: tl.constexpr
):
    """Channels `at` of a row, in the rotated basis; past the last one 0. [SIZE] float32"""
    here = at < columns
    part = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    if MASKED:
        part = part * tl.load(mask + at, mask=here, other=0.0)
    return _rotated(part, matrix, S, SIZE, PRECISE)


@triton.jit
def _write(part, step, codes, at, columns):
    whole = (part / step + WHOLE_NUMBERS) - WHOLE_NUMBERS
    whole = tl.minimum(tl.maximum(whole, -TOP), TOP)
    tl.store(codes + at, whole.to(tl.int8), mask=at < columns)


@triton.jit(do_not_specialize=ROUND_INTS)
def round_kernel(
    x, mask, matrix, codes, steps, columns, step,
    S: tl.constexpr, MASKED: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """Grid (M,). x: rows `step` numbers apart; mask: [K], not read unless MASKED; matrix: of the rotation, the root of
    the one of 256; WHOLE: SIZE numbers hold the row
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * step
    codes += row * columns
    at = tl.arange(0, SIZE)
    if WHOLE:
        part = _part(x, mask, matrix, at, columns, S, MASKED, SIZE, PRECISE)
        size = tl.maximum(tl.max(tl.abs(part), 0) / TOP, LEAST)
        _write(part, size, codes, at, columns)
    else:
        top = tl.zeros((SIZE,), tl.float32)
        for start in range(0, columns, SIZE):
            top = tl.maximum(top, tl.abs(_part(x, mask, matrix, start + at, columns, S, MASKED, SIZE, PRECISE)))
        size = tl.maximum(tl.max(top, 0) / TOP, LEAST)
        for start in range(0, columns, SIZE):
            part = _part(x, mask, matrix, start + at, columns, S, MASKED, SIZE, PRECISE)
            _write(part, size, codes, start + at, columns)
    tl.store(steps + row, size)
