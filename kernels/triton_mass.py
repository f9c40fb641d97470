"""Block mass in Triton: scores in registers, one number written per pair of blocks; CUDA and ROCm.

Extra memory, in bytes, beside the inputs and the result, with G = B H and I the size of a number of q: 16 X K S for the
key slots' bias and its making, X = 1, B or G; 24 L Q R where only R rows of a block are read, L = 1 or G tables;
4 G Q K for every 128 rows of a query block where there are more (64 above head dim 128, 32 in fp32); I B N H D for each
of q, k whose strides are not multiples of 8, and 4 B N H for an lse that is not contiguous.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block
# R rows read of a query block

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from . import triton_attend
from .mass_call import MassCall
from .pool_blocks import slot_bias
from .triton_arguments import padded, strided
from .triton_attend import LOG2E

NAME = "triton"


def why_not(call: MassCall) -> str | None:
    """Why it cannot take a call that `MassCall.why_not` lets through: that of block attention."""
    return triton_attend.why_not(call)


def mass(call: MassCall) -> Tensor:
    """fp32 [B * H, Q, K]; the contract is that of `block_mass`."""
    heads = call.q.shape[0] * call.q.shape[2]
    rows, stands_for = call.rows_read()
    tile = _tile(call, rows.shape[2])
    parts = -(-rows.shape[2] // tile["M"])
    found = torch.empty(parts, heads, rows.shape[1], call.plan.k_slots.shape[1], device=call.q.device)
    with torch.cuda.device(call.q.device) if call.q.is_cuda else nullcontext():
        _kernels().mass_kernel[(parts * heads * rows.shape[1],)](**_arguments(call, rows), **tile, found=found)
    found = found[0] if parts == 1 else found.sum(0)
    return found if stands_for is None else found.mul_(stands_for[..., None])


@cache
def _kernels() -> ModuleType:
    from . import triton_mass_kernel

    return triton_mass_kernel


def _tile(call: MassCall, rows: int) -> dict[str, int]:
    """Rows of a program, key slots of a step, and what Triton makes of them.

    Triton 3.6 takes 97 KB of shared memory at most, on compute capability 9.0 with head dim 256; 65 KB on 8.x and 12.x
    and 33 KB on gfx942. Registers spill nowhere.
    """
    rows, dim = padded(rows), padded(call.q.shape[-1])
    if call.q.dtype == torch.float32:  # no matrix units: for being right rather than for speed
        return {"M": min(rows, 32), "N": 16 if dim > 128 else 32, "num_warps": 4, "num_stages": 2}
    rows = min(rows, 128 if dim <= 128 else 64)
    return {"M": rows, "N": 64, "num_warps": 8 if rows == 128 else 4, "num_stages": 3 if dim <= 128 else 2}


def _arguments(call: MassCall, rows: Tensor) -> dict[str, Tensor | int | float]:
    plan, heads = call.plan, call.q.shape[0] * call.q.shape[2]
    bias = slot_bias(plan.k_slots, call.key_bias, call.q.shape[2]).mul_(LOG2E)
    return {
        **strided(q=call.q, k=call.k), "lse": call.lse.contiguous(), "rows": rows.contiguous(),
        "k_slots": plan.k_slots.contiguous(),
        "slot_bias": bias, "scale": call.scale * LOG2E, "heads": call.q.shape[2], "q_tokens": call.q.shape[1],
        "Q": rows.shape[1], "K": plan.k_slots.shape[1], "R": rows.shape[2], "SK": plan.k_slots.shape[2],
        "rows_geo": int(len(rows) > 1), "k_geo": int(len(plan.k_slots) > 1), "bias_share": heads // len(bias),
        "D": call.q.shape[-1], "DP": padded(call.q.shape[-1]), "SP": padded(plan.k_slots.shape[2]),
    }  # fmt: skip
