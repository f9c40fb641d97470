"""Decoding of quantised weights in Triton: each code is read where its number is written; CUDA and ROCm.

One binary for each kind, width and dtype, and for rows shorter than 1024 or not; no other length compiles anything.
"""
# N rows   K columns   L levels   D numbers of a vector

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import triton_device

if TYPE_CHECKING:
    from .decode_codes import DecodeCall

NAME = "triton"
BLOCK, SMALL = 1024, 256  # numbers of a program: 8 or 2 for each of 128 threads. Not measured on a GPU.
MOST = 1 << 31  # programs of a launch


def why_not(call: DecodeCall) -> str | None:
    """Why it cannot take a call that `DecodeCall.why_not` lets through, or None. Never waits for the device."""
    if call.codes.shape[0] * -(-call.columns // SMALL) >= MOST:
        return "there are more parts of rows than programs of a launch"
    return triton_device.why_not(call.codes.device)


def decode(call: DecodeCall) -> Tensor:
    """The contract is that of `decode_codes`."""
    codes, table = call.codes.contiguous(), call.table.contiguous()
    rows, columns = len(codes), call.columns
    dtype = torch.int8 if call.kind == "uniform" else table.dtype
    out = torch.empty((rows, columns), dtype=dtype, device=codes.device)
    if not out.numel():
        return out
    block = BLOCK if columns >= BLOCK else SMALL
    parts, by_row = -(-columns // block), call.kind == "lookup" and table.ndim == 2
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        _kernels().decode_kernel[(rows * parts,)](
            codes=codes, table=table, out=out, columns=columns, parts=parts, step=codes.shape[1],
            numbers=columns // call.width, BITS=call.bits, KIND=call.kind, BY_ROW=by_row, WIDTH=call.width, BLOCK=block,
            num_warps=4,
        )  # fmt: skip
    return out


@cache
def _kernels() -> ModuleType:
    from . import triton_decode_codes_kernel

    return triton_decode_codes_kernel
