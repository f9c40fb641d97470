"""The Triton kernels of quantised weights outside of the interpreter: they compile for cards that are not here, fit
them, are compiled once whatever the lengths, and never wait for a device. What they compute: interpreted_*.py.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from interspatial.kernels import triton_decode_codes, triton_device, triton_int8, triton_round_rows
from interspatial.kernels.decode_codes import DecodeCall
from interspatial.kernels.int8_linear import LinearCall
from interspatial.kernels.round_rows import RoundCall
from interspatial.kernels.triton_int8 import AMD, FEW, NVIDIA

AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
SHARED = {AMPERE: 166912, HOPPER: 232448, CDNA: 65536}  # bytes of shared memory that one program may have


@pytest.fixture
def target():
    return pytest.importorskip("triton.backends.compiler").GPUTarget


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def decode(kind: str, bits: int, rows: int, columns: int, by_row: bool = True):
    width = 4 if kind == "vectors" else 1
    shape = {"uniform": (rows, 1), "lookup": (rows, 1 << bits)[not by_row :], "vectors": (1 << bits, width)}[kind]
    table = empty(*shape, dtype=torch.uint8 if kind == "uniform" else torch.int8)
    call = DecodeCall(kind, empty(rows, columns // width * bits // 8), bits, columns, table)
    assert call.why_not() is None
    return lambda: triton_decode_codes.decode(call)


def rounded(tokens: int, columns: int, block: int = 256, masked: bool = True, dtype: torch.dtype = torch.bfloat16):
    mask = empty(columns, dtype=torch.float32) if masked else None
    return lambda: triton_round_rows.rounded(RoundCall(empty(tokens, columns, dtype=dtype), mask, block))


def product(tokens: int, columns: int, outputs: int, dtype: torch.dtype = torch.bfloat16):
    weight, scale = empty(outputs, columns, dtype=torch.int8), empty(outputs, 1, dtype=torch.float32)
    x, bias = empty(tokens, columns, dtype=dtype), empty(outputs, dtype=dtype)
    return lambda: triton_int8.linear(LinearCall(x, weight, scale, bias, 1, None))


def compiled(launch, card, target) -> str:
    """The assembler of a kernel, which must fit the card."""
    found = launch.compiled(target(*card))
    assert 0 <= found.metadata.shared <= SHARED[card]
    assert found.asm["hsaco" if card == CDNA else "cubin"]
    return found.asm["amdgcn" if card == CDNA else "ptx"]


@pytest.mark.parametrize(
    ("card", "kind", "bits"), [(AMPERE, "uniform", 3), (HOPPER, "lookup", 4), (CDNA, "vectors", 6)], ids=str
)
def test_decoding_compiles(card, kind, bits, quant_launch, target):
    (launch,) = quant_launch(decode(kind, bits, 5, 4096))
    assert launch.grid == (20,)
    compiled(launch, card, target)


@pytest.mark.parametrize(
    ("card", "columns", "block"), [(AMPERE, 1536, 64), (HOPPER, 13824, 256), (CDNA, 1024, 16)], ids=str
)
def test_rounding_compiles(card, columns, block, quant_launch, target, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4" if card == CDNA else None)
    (launch,) = quant_launch(rounded(7, columns, block))
    assert launch.grid == (7,)
    compiled(launch, card, target)


@pytest.mark.parametrize(
    ("card", "tile", "word"),
    [*((AMPERE, tile, ".s32.s8.s8.s32") for tile in NVIDIA[:1] + FEW[:1]), (HOPPER, NVIDIA[2], "s32.s8.s8"),
     (CDNA, AMD[1], "v_mfma_i32")],
    ids=str,
)  # fmt: skip
def test_the_product_compiles_to_int8_units(card, tile, word, quant_launch, target, monkeypatch):
    monkeypatch.setattr(triton_int8, "TUNER", triton_int8.Tuner())
    monkeypatch.setattr(triton_int8, "tiles", lambda device, many: (tile,))
    (launch,) = quant_launch(product(1000, 1536, 1536))
    assert launch.grid == (-(-1000 // tile.M) * -(-1536 // tile.N),)
    assert word in compiled(launch, card, target)


@pytest.mark.parametrize("card", [AMPERE, CDNA], ids=str)
def test_no_length_compiles_anything_anew(card, quant_launch, target, monkeypatch):
    """Numbers of 1 and multiples of 16 are what Triton would otherwise make variants of."""
    monkeypatch.setattr(triton_int8, "TUNER", triton_int8.Tuner())
    monkeypatch.setattr(triton_int8, "tiles", lambda device, many: FEW[:1])
    groups = [
        [decode("lookup", 4, rows, columns) for rows, columns in ((1, 1024), (7, 1032), (16, 4096))],
        [decode("uniform", 3, rows, columns) for rows, columns in ((1, 8), (7, 264), (16, 512))],
        [rounded(tokens, columns) for tokens, columns in ((1, 5120), (7, 5376), (16, 8192))],
        [rounded(tokens, columns) for tokens, columns in ((1, 8448), (7, 13824), (16, 16384))],
        [product(*sizes) for sizes in ((1, 1024, 1), (7, 1152, 16), (600, 128, 9))],
    ]
    for group in groups:
        kinds = [quant_launch(run)[-1].compile_time(target(*card))[1:] for run in group]
        assert all(one == other for one, other in pairwise(kinds))


def test_more_numbers_than_31_bits_count(quant_launch):
    (launch,) = quant_launch(decode("uniform", 4, 1 << 20, 1 << 13))
    assert launch.grid == (1 << 23,)
    many = DecodeCall("uniform", empty(1 << 24, 1 << 15), 4, 1 << 16, empty(1 << 24, 1))
    assert "more parts of rows" in triton_decode_codes.why_not(many)


def test_reasons(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in triton_device.why_not(torch.device("cpu"))
    assert "CUDA and ROCm" in triton_device.why_not(torch.device("meta"))
    monkeypatch.setattr(triton_device, "found", lambda: (None, "ImportError: no triton"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "no triton" in triton_device.why_not(torch.device("cpu"))
    monkeypatch.setattr(triton_device, "found", lambda: (False, ""))
    assert "after Triton had been imported" in triton_device.why_not(torch.device("cpu"))
    x = torch.ones(2, 48)
    assert "it takes 256, 64, 16" in triton_round_rows.why_not(RoundCall(x, None, 4))
