"""Packed codes against one loop over single bits, and back again."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.pack_bits import PLANES, pack, unpack, why_not

pytestmark = pytest.mark.usefixtures("poisoned")

CASES = [(bits, rows, columns) for bits in PLANES for rows, columns in ((1, 8), (3, 40), (5, 1000))]


def codes_of(bits: int, rows: int, columns: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(bits * rows + columns)
    return torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=draw)


def naive(row: list[int], bits: int) -> list[int]:
    """Bytes of one row: plane after plane, each filled bit by bit from the lowest."""
    packed, low = [], 0
    for width in PLANES[bits]:
        stream = [code >> (low + i) & 1 for code in row for i in range(width)]
        packed += [sum(bit << i for i, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8)]
        low += width
    return packed


@pytest.mark.parametrize(("bits", "rows", "columns"), CASES)
def test_bytes_hold_the_planes_in_order(bits, rows, columns):
    codes = codes_of(bits, rows, columns)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, columns * bits // 8)
    assert packed.tolist() == [naive(row, bits) for row in codes.tolist()]


@pytest.mark.parametrize(("bits", "rows", "columns"), CASES)
def test_unpack_is_the_inverse(bits, rows, columns):
    codes = codes_of(bits, rows, columns)
    found = unpack(pack(codes, bits), bits, columns)
    assert found.dtype == torch.uint8
    assert torch.equal(found, codes)


@pytest.mark.parametrize("bits", PLANES)
def test_every_row_is_packed_on_its_own(bits):
    codes = codes_of(bits, 4, 24)
    packed = pack(codes, bits)
    assert torch.equal(torch.cat([pack(row[None], bits) for row in codes]), packed)
    assert torch.equal(unpack(packed[1:3], bits, 24), codes[1:3])


def test_columns_that_lie_apart_in_memory():
    codes = codes_of(3, 16, 5).t().contiguous().t()[::2].t()
    assert torch.equal(unpack(pack(codes, 3), 3, codes.shape[1]), codes)


def test_refuses_what_fills_no_whole_bytes():
    assert why_not(8, 3) is None
    assert why_not(2, 4) is None
    assert "multiple of 8" in why_not(12, 3)
    assert "multiple of 4" in why_not(6, 6)
    assert "no codes of 5 bits" in why_not(8, 5)
    with pytest.raises(ValueError, match="multiple of 4"):
        pack(codes_of(2, 2, 6), 2)
