"""The Triton backend that decodes weights against the reference.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import pack_bits
from interspatial.kernels.decode_codes import (
    BACKENDS,
    decode_lookup,
    decode_reference,
    decode_uniform,
    decode_vectors,
)

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

SHAPES = [(1, 8), (3, 264), (2, 1032), (0, 8)]  # one byte, past a small program, past a large one, nothing


def numbers(rows: int, columns: int, bits: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(bits)
    return torch.randint(0, 1 << bits, (rows, columns), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_uniform(bits):
    for shape in SHAPES:
        codes, zero = pack_bits.pack(numbers(*shape, bits), bits), numbers(shape[0], 1, bits)
        got = decode_uniform(codes, bits, shape[1], zero, backend="triton")
        assert torch.equal(got, decode_reference("uniform", codes, bits, shape[1], zero))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32], ids=str)
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lookup(bits, by_row, dtype):
    for shape in SHAPES:
        codes = pack_bits.pack(numbers(*shape, bits), bits)
        table = torch.randint(-127, 128, (shape[0], 1 << bits)[not by_row :]).to(dtype)
        got = decode_lookup(codes, bits, shape[1], table, backend="triton")
        assert torch.equal(got, decode_reference("lookup", codes, bits, shape[1], table))


@pytest.mark.parametrize(("bits", "width"), [(8, 4), (6, 2)])
def test_vectors(bits, width):
    book = torch.randint(-127, 128, (1 << bits, width)).to(torch.int8)
    for rows, columns in SHAPES:
        codes = pack_bits.pack(numbers(rows, columns, bits), bits)
        got = decode_vectors(codes, bits, columns * width, book, backend="triton")
        assert torch.equal(got, decode_reference("vectors", codes, bits, columns * width, book))


def test_rows_apart_are_copied_first():
    codes = pack_bits.pack(numbers(4, 16, 4), 4)
    apart, zero = codes.repeat(1, 2)[:, :8], numbers(4, 1, 4)
    assert torch.equal(decode_uniform(apart, 4, 16, zero), decode_reference("uniform", codes, 4, 16, zero))
    assert not BACKENDS.failures, "it did not run in Triton"
