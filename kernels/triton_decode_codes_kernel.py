"""The Triton kernel that decodes weights. One program writes BLOCK numbers of one row.

Imported by `triton_decode_codes` alone, and only where Triton is there. Neighbouring threads read the same byte, which
comes from the cache; what counts is what is written.
"""
# N rows   K columns   parts = ceil(K / BLOCK)

from __future__ import annotations

import triton
import triton.language as tl

DECODE_INTS = ("columns", "parts", "step", "numbers")


@triton.jit
def _plane(row, at, here, WIDTH: tl.constexpr):
    """Bits of codes `at` of a plane that begins at `row`. [BLOCK] int32"""
    LANES: tl.constexpr = 8 // WIDTH
    byte = tl.load(row + at // LANES, mask=here, other=0).to(tl.int32)
    return (byte >> ((at % LANES) * WIDTH)) & ((1 << WIDTH) - 1)


@triton.jit
def _code(row, at, here, numbers, BITS: tl.constexpr):
    """Codes `at` of a row of packed ones; 3 bits are planes of 2 and 1, 6 bits of 4 and 2. [BLOCK] int32"""
    if BITS == 3:
        return _plane(row, at, here, 2) | (_plane(row + numbers // 4, at, here, 1) << 2)
    elif BITS == 6:
        return _plane(row, at, here, 4) | (_plane(row + numbers // 2, at, here, 2) << 4)
    else:
        return _plane(row, at, here, BITS)


@triton.jit(do_not_specialize=DECODE_INTS)
def decode_kernel(
    codes, table, out, columns, parts, step, numbers,
    BITS: tl.constexpr, KIND: tl.constexpr, BY_ROW: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (N * parts,). step: bytes of a row; numbers: codes of a row; WIDTH: numbers of a vector"""
    row = (tl.program_id(0) // parts).to(tl.int64)
    at = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    here = at < columns
    code = _code(codes + row * step, at // WIDTH, here, numbers, BITS)
    if KIND == "uniform":
        number = code - tl.load(table + row).to(tl.int32)
    elif KIND == "vectors":
        number = tl.load(table + code * WIDTH + at % WIDTH, mask=here, other=0)
    else:
        first = table
        if BY_ROW:
            first += row * (1 << BITS)
        number = tl.load(first + code, mask=here, other=0)
    tl.store(out + row * columns + at, number.to(out.dtype.element_ty), mask=here)
