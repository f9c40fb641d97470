"""Decoding of packed codes against lists of numbers, and refusals. Triton: interpreted_triton_decode_codes.py."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import decode_codes as module
from interspatial.kernels import pack_bits
from interspatial.kernels.decode_codes import (
    BACKENDS,
    decode_lookup,
    decode_reference,
    decode_uniform,
    decode_vectors,
    unpacked,
)

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPES = [(1, 8), (3, 16), (5, 264), (37, 1048), (0, 16)]  # one byte, ragged, beyond one part, nothing
WIDTHS = [1, 2, 3, 4, 6, 8]


def numbers(rows: int, columns: int, bits: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(bits)
    return torch.randint(0, 1 << bits, (rows, columns), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpacking_undoes_packing(shape, bits):
    codes = numbers(*shape, bits)
    packed = pack_bits.pack(codes, bits)
    assert torch.equal(unpacked(packed, bits, shape[1]), codes)
    assert torch.equal(unpacked(packed.repeat(1, 2)[:, : packed.shape[1]], bits, shape[1]), codes)  # rows apart


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uniform(shape, bits):
    codes, zero = numbers(*shape, bits), numbers(shape[0], 1, bits)
    got = decode_uniform(pack_bits.pack(codes, bits), bits, shape[1], zero)
    assert got.dtype == torch.int8 and got.tolist() == (codes.int() - zero.int()).tolist()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_lookup(bits, by_row, dtype, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 4 * 264)  # parts of 4 rows, the last one short
    draw = torch.Generator().manual_seed(1)
    for shape in SHAPES:
        codes = numbers(*shape, bits)
        table = torch.randint(-127, 128, (shape[0], 1 << bits)[not by_row :], generator=draw).to(dtype)
        got = decode_lookup(pack_bits.pack(codes, bits), bits, shape[1], table)
        want = [[(table[i] if by_row else table)[c].item() for c in row] for i, row in enumerate(codes.tolist())]
        assert got.dtype == dtype and got.shape == shape and got.tolist() == want


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("bits", "width"), [(8, 4), (6, 2), (8, 3), (4, 8)])
def test_vectors(bits, width, dtype):
    book = torch.randint(-127, 128, (1 << bits, width), generator=torch.Generator().manual_seed(2)).to(dtype)
    for rows, columns in SHAPES:
        codes = numbers(rows, columns, bits)
        got = decode_vectors(pack_bits.pack(codes, bits), bits, columns * width, book)
        want = [[x for code in row for x in book[code].tolist()] for row in codes.tolist()]
        assert got.dtype == dtype and got.tolist() == want


@pytest.mark.parametrize("kind", ["uniform", "lookup", "vectors"])
def test_the_reference_matches_by_hand(kind):
    """0x21, 0xB3: 1, 2, 3, 11 in codes of 4 bits, low ones first."""
    codes = torch.tensor([[0x21, 0xB3]], dtype=torch.uint8)
    tables = {"uniform": torch.tensor([[3]], dtype=torch.uint8), "lookup": torch.arange(16) * 2,
              "vectors": torch.arange(32).view(16, 2)}  # fmt: skip
    want = {"uniform": [-2, -1, 0, 8], "lookup": [2, 4, 6, 22], "vectors": [2, 3, 4, 5, 6, 7, 22, 23]}[kind]
    assert decode_reference(kind, codes, 4, len(want), tables[kind]).tolist() == [want]


def test_modes_of_autograd():
    codes, zero = pack_bits.pack(numbers(5, 16, 4), 4), numbers(5, 1, 4)
    want = decode_reference("uniform", codes, 4, 16, zero)
    with torch.inference_mode():
        assert torch.equal(decode_uniform(codes, 4, 16, zero), want)
        assert torch.equal(decode_uniform(codes.clone(), 4, 16, zero.clone()), want)
    with torch.no_grad():
        assert torch.equal(decode_uniform(codes, 4, 16, zero), want)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: decode_uniform(torch.zeros(2, 4), 4, 8, torch.zeros(2, 1, dtype=torch.uint8)), "packed uint8 rows"),
        (lambda: decode_uniform(torch.zeros(2, 4).byte(), 5, 8, torch.zeros(2, 1).byte()), "packed uint8 rows of 1, 2"),
        (lambda: decode_uniform(torch.zeros(2, 4).byte(), 4, 10, torch.zeros(2, 1).byte()), "do not hold 10 codes"),
        (lambda: decode_uniform(torch.zeros(2, 3).byte(), 3, 9, torch.zeros(2, 1).byte()), "fill no whole bytes"),
        (lambda: decode_uniform(torch.zeros(2, 4).byte(), 4, 8, torch.zeros(2, 1)), "its table is torch.float32"),
        (lambda: decode_lookup(torch.zeros(2, 4).byte(), 4, 8, torch.zeros(3, 16)), r"takes \[16\] or \[2, 16\]"),
        (lambda: decode_vectors(torch.zeros(2, 4).byte(), 8, 10, torch.zeros(256, 4)), "no multiple of the numbers"),
        (lambda: decode_lookup(torch.zeros(2, 4).byte(), 4, 8, torch.zeros(16, device="meta")), "two devices"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_backends(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    with pytest.raises(ValueError, match=r"triton backend .* \(TRITON_INTERPRET=1\)"):
        decode_uniform(torch.zeros(2, 4).byte(), 4, 8, torch.zeros(2, 1).byte(), backend="triton")
