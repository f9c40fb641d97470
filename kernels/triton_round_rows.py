"""Rows rotated and rounded to int8 in Triton: one program per row, which is read once or twice and written once.

Rows up to WHOLE numbers stay in registers. Longer ones are read twice, in parts, the second time from the cache, and
rotated twice. The block of 256 is rotated by two products with the matrix of 16; on NVIDIA cards these are three passes
of the matrix units over float32, elsewhere exact ones.
"""
# M tokens   K channels

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import triton_device
from .block_hadamard import ROOT, SIZES, hadamard

if TYPE_CHECKING:
    from .round_rows import RoundCall

NAME = "triton"
WHOLE, PART, LEAST = 8192, 4096, 1024  # numbers: of a row kept whole, of a part of a longer one, of the least program
WARPS = 8  # 32 numbers of float32 for each thread at most. Not measured on a GPU.


def why_not(call: RoundCall) -> str | None:
    """Why it cannot take a call that `RoundCall.why_not` lets through, or None. Never waits for the device."""
    if call.block not in (1, *SIZES):
        return f"the rotation block is {call.block}; it takes {', '.join(map(str, SIZES))}"
    return triton_device.why_not(call.x.device)


def rounded(call: RoundCall) -> tuple[Tensor, Tensor]:
    """The contract is that of `round_rows`."""
    x = call.x if call.x.stride(1) == 1 else call.x.contiguous()
    tokens, columns = x.shape
    codes = torch.empty((tokens, columns), dtype=torch.int8, device=x.device)
    steps = torch.empty((tokens, 1), dtype=torch.float32, device=x.device)
    if not x.numel():
        return codes, steps
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _kernels().round_kernel[(tokens,)](**arguments(call, x), codes=codes, steps=steps)
    return codes, steps


def arguments(call: RoundCall, x: Tensor) -> dict:
    """Of the kernel, but for its results. x: rows without gaps between channels"""
    columns, masked = x.shape[1], call.mask is not None
    whole = max(LEAST, 1 << (columns - 1).bit_length())
    size = whole if whole <= WHOLE else PART
    matrix = hadamard(min(call.block, 64) if call.block < ROOT**2 else ROOT, x.device, torch.float32)
    return {
        "x": x, "mask": call.mask.float().contiguous() if masked else x, "matrix": matrix, "columns": columns,
        "step": x.stride(0), "S": call.block, "MASKED": masked, "SIZE": size, "WHOLE": whole <= WHOLE,
        "PRECISE": precision(x.device), "num_warps": WARPS if size > LEAST else 4,
    }  # fmt: skip


def precision(device: torch.device) -> str:
    """How Triton multiplies float32 there without losing digits."""
    return "ieee" if device.type == "cpu" or torch.version.hip else "tf32x3"


@cache
def _kernels() -> ModuleType:
    from . import triton_round_rows_kernel

    return triton_round_rows_kernel
