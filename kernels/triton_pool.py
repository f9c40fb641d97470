"""Block means in Triton: every token is read once, in its own precision, where it lies; CUDA and ROCm.

Beside the results it takes nothing but a copy of x where its strides are not multiples of 8. No length or stride
compiles anything.
"""
# B batch   N tokens   H heads   D head dim   K blocks   S slots per block

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import triton_device
from .triton_arguments import UNIT, padded, strided

if TYPE_CHECKING:
    from .pool_blocks import PoolCall

NAME = "triton"
MAX_DIM = 256  # numbers of a token that one program holds
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Numbers of a step, 64 for each thread; with squares half of it. On compute capability 9.0 that takes 48 registers at
# head dim 128, and nothing spills.
TILE = 8192


def why_not(call: PoolCall) -> str | None:
    """Why it cannot take a call that `PoolCall.why_not` lets through, or None. Never waits for the device."""
    dim = call.x.shape[-1]
    if dim % UNIT or dim > MAX_DIM:
        return f"the head dim is {dim}; it takes multiples of {UNIT} up to {MAX_DIM}"
    if call.x.dtype not in DTYPES:
        return f"x is {call.x.dtype}; it takes bfloat16, float16 and float32"
    return triton_device.why_not(call.x.device)


def pooled(call: PoolCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and mean of squares as [B, H, K, D], log weight as [B, H, K], all fp32; see `pool_blocks`."""
    batch, _, heads, dim = call.x.shape
    blocks, device = call.slots.shape[1], call.x.device
    mean = torch.empty(batch, heads, blocks, dim, device=device)
    mass = torch.empty(batch, heads, blocks, device=device)
    square = torch.empty_like(mean) if call.squares else None
    if mass.numel():
        with torch.cuda.device(device) if call.x.is_cuda else nullcontext():
            _kernels().pool_kernel[(mass.numel(),)](
                **_arguments(call), mean=mean, mass=mass, square=mean if square is None else square
            )
    return mean, mass, square


@cache
def _kernels() -> ModuleType:
    from . import triton_pool_kernel

    return triton_pool_kernel


def _arguments(call: PoolCall) -> dict:
    given, x = strided(x=call.x), call.x
    dim, size = padded(x.shape[-1]), padded(call.slots.shape[2])
    slots = min(size, 64, TILE // dim // (1 + call.squares))
    biased = call.key_bias is not None
    return {
        **given, "slots": call.slots.contiguous(),
        "key_bias": call.key_bias.float().contiguous() if biased else given["x"],
        "heads": x.shape[2], "tokens": x.shape[1], "K": call.slots.shape[1], "S": call.slots.shape[2],
        "geo": int(len(call.slots) > 1), "D": x.shape[-1], "DP": dim, "M": slots,
        "BIAS": biased, "SQUARES": call.squares, "num_warps": 4,
    }  # fmt: skip
