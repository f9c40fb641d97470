"""The Triton backend of the weighted sum outside its kernel; what it computes: interpreted_triton_weighted_sum.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from interspatial.kernels import triton_weighted_sum
from interspatial.kernels.triton_weighted_sum import BLOCK
from interspatial.kernels.weighted_sum import SumCall

AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
WIDE = {"cuda": ("ld.global.v4", "st.global.v4"), "hip": ("load_dwordx4", "store_dwordx4")}  # 16 bytes at once


@pytest.fixture
def target():
    return pytest.importorskip("triton.backends.compiler").GPUTarget


def some(count: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(shape, dtype=dtype) for _ in range(count))


@pytest.mark.parametrize(
    ("card", "dtype", "count"),
    [(AMPERE, torch.bfloat16, 2), (HOPPER, torch.float32, 8), (CDNA, torch.float16, 3)],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 3])
def test_it_compiles_to_wide_loads(rows, card, dtype, count, sum_launch, target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tensors = tuple(x[:, :4096] for x in some(count, rows, 8192, dtype=dtype))
    made = sum_launch(SumCall(tensors, (0.5,) * count))
    assert made.grid == (rows * 2,)
    found = made.compiled(target(*card))
    assert found.asm["hsaco" if card == CDNA else "cubin"]
    text = found.asm["amdgcn" if card == CDNA else "ptx"]
    assert all(word in text for word in WIDE[card[0]]), "a mask or an address keeps numbers apart"


@pytest.mark.parametrize("card", [AMPERE, CDNA], ids=str)
def test_no_length_and_no_weight_compiles_anything_anew(card, sum_launch, target):
    """Numbers of 1 and multiples of 16 are what Triton would otherwise make variants of; 0 and 1 as weights too."""
    kinds = {8: [], 1: []}
    for length, weights in ((8, (1.0, 0.0)), (4096, (2.0, -1.0)), (4104, (0.3, 1e-3)), (1 << 20, (-7.5, 16.0))):
        kinds[8].append(sum_launch(SumCall(some(2, length), weights)).compile_time(target(*card))[1:])
        kinds[1].append(sum_launch(SumCall(some(2, length + 1), weights)).compile_time(target(*card))[1:])
        rows = tuple(x[:, :4096] for x in some(2, 5, 8192 + length))
        kinds[8].append(sum_launch(SumCall(rows, weights)).compile_time(target(*card))[1:])
    for same in kinds.values():
        assert all(one == other for one, other in pairwise(same))
    assert kinds[8][0] != kinds[1][0]


def test_a_device_is_never_waited_for(sum_launch):
    """On the meta device every read of a value raises."""
    x, y = (t.to("meta") for t in some(2, 3, 5 * BLOCK + 1))
    made = sum_launch(SumCall((x, y), (2.0, -1.0)))
    assert made.grid == (16,) and made.arguments["UNIT"] == 1
    assert made.arguments["x1"] is y and made.arguments["w1"] == -1.0


def test_more_numbers_than_31_bits_count(sum_launch):
    """The distance of rows and their length reach the kernel whole, in units of 8."""
    x = torch.empty(1, device="meta").expand(3, 1 << 33)
    y = torch.empty_strided((3, 1 << 33), (1 << 34, 1), device="meta")
    made = sum_launch(SumCall((x.contiguous(), y), (1.0, 1.0)))
    assert made.grid == (3 * (1 << 33) // BLOCK,)
    assert (made.arguments["length"], made.arguments["s0"], made.arguments["s1"]) == (1 << 30, 1 << 30, 1 << 31)


def test_reasons(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in triton_weighted_sum.why_not(SumCall(some(1, 4), (1.0,)))
    assert "CUDA and ROCm" in triton_weighted_sum.why_not(SumCall((torch.empty(3, device="meta"),), (1.0,)))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "float64" in triton_weighted_sum.why_not(SumCall(some(1, 4, dtype=torch.float64), (1.0,)))
    assert "up to 8" in triton_weighted_sum.why_not(SumCall(some(9, 4), (1.0,) * 9))
