"""The weighted sum in Triton: each number is read once and written once; CUDA and ROCm.

Tensors may have rows apart from each other, as the entries of a batch, or the video in a row that ends with sound: the
kernel knows one distance for each. Others are copied first. One binary for each K, dtype, and whether lengths are
multiples of 8; no length, distance or weight compiles anything.
"""
# K tensors   R rows   M numbers of a row

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .weighted_sum import SumCall

NAME = "triton"

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST = 8  # arguments of the kernel; forecasts have 2 to 6
UNIT = 8  # numbers of 16 bits in the widest load
# Numbers of a program: each of the 128 threads then reads two 16-byte words of a bfloat16 tensor, four of a float32
# one. Not measured on a GPU; bench/cache/weighted_sum.py does it.
BLOCK = 2048


def why_not(call: SumCall) -> str | None:
    """Why it cannot take a call that `SumCall.why_not` lets through, or None. Never waits for the device."""
    first = call.tensors[0]
    if first.device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA and ROCm devices, and the tensors are on {first.device.type}"
    if first.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on the CPU, where Triton runs in its interpreter alone (TRITON_INTERPRET=1)"
    if first.dtype not in DTYPES:
        return f"the tensors are {first.dtype}; it takes bfloat16, float16 and float32"
    if len(call.tensors) > MOST:
        return f"there are {len(call.tensors)} tensors; it takes up to {MOST}"
    kernels, reason = _kernels()
    if kernels is None:
        return f"Triton cannot be used: {reason}"
    if first.device.type == "cpu" and not kernels.INTERPRETED:
        return "TRITON_INTERPRET was set after Triton had been imported"
    if first.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(first.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def weigh(call: SumCall) -> Tensor:
    """The contract is that of `weighted_sum`."""
    kernels, reason = _kernels()
    if kernels is None:
        raise RuntimeError(f"A weighted sum cannot run in Triton: {reason}.")
    given = list(call.tensors)
    out = torch.empty_like(given[0])  # has the strides of a tensor without gaps
    if not out.numel():
        return out
    length, steps = out.numel(), [0] * len(given)
    if any(x.stride() != out.stride() for x in given):
        out = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        given, length, steps = _rows(given)
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        _launch(kernels, call, given, out, length, steps)
    return out


@cache
def _kernels() -> tuple[ModuleType | None, str]:
    """The module with the kernel, or why there is none."""
    try:
        from . import triton_weighted_sum_kernel
    except Exception as error:  # broken installs raise more than ImportError
        return None, f"{type(error).__name__}: {error}"
    return triton_weighted_sum_kernel, ""


def _launch(
    kernels: ModuleType, call: SumCall, given: list[Tensor], out: Tensor, length: int, steps: list[int]
) -> None:
    """length: of the rows    steps: distance of the rows of each tensor"""
    count, parts = len(call.tensors), -(-length // BLOCK)
    unit = 1 if any(n % UNIT for n in (length, *steps)) else UNIT
    terms = [(x, w, step // unit) for x, w, step in zip(given, call.weights, steps, strict=True)]
    terms += [(out, 0.0, 0)] * (MOST - count)  # the kernel for K tensors does not read them
    named = {f"{name}{k}": value for k, term in enumerate(terms) for name, value in zip("xws", term, strict=True)}
    kernels.sum_kernel[(out.numel() // length * parts,)](
        **named, out=out, length=length // unit, parts=parts, K=count, UNIT=unit, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def _rows(given: list[Tensor]) -> tuple[list[Tensor], int, list[int]]:
    """The tensors as rows of one length, copied where they are not; that length; the distance of each one's rows."""
    found, whole = [_row(x) for x in given], given[0].numel()
    inner = min((row[0] for row in found if row), default=whole)
    if inner < BLOCK:  # most of a program would be idle
        inner = whole
    rows, steps = [], []
    for x, row in zip(given, found, strict=True):
        rows.append(x if row and row[0] in (inner, whole) else x.contiguous())
        steps.append(row[1] if row and row[0] == inner else inner)
    return rows, inner, steps


def _row(x: Tensor) -> tuple[int, int] | None:
    """Length and distance of the rows that x consists of, None if it does not; a tensor without gaps is one row."""
    runs = list(_runs(x))
    if not runs or runs == [(x.numel(), 1)]:
        return x.numel(), x.numel()
    if len(runs) == 2 and runs[0][1] == 1:
        return runs[0][0], runs[1][1]
    return None


def _runs(x: Tensor) -> list[tuple[int, int]]:
    """Size and stride of the dims of x, innermost first, those merged that go on where the one inside them ends."""
    runs: list[tuple[int, int]] = []
    for size, stride in reversed([*zip(x.shape, x.stride(), strict=True)]):
        if size == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = size * runs[-1][0], runs[-1][1]
        else:
            runs.append((size, stride))
    return runs
