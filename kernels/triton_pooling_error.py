"""The error of pooling in Triton: what there is for each query and slot stays in registers; CUDA and ROCm.

In torch it is written and read some 25 times: 130 GB for 75,600 tokens of 40 heads and 295 queries, in 3331 blocks of
32 slots. Here errors are relative to the largest logit of their block, and brought to one of the query's in the end.
Extra memory: three maps of the result's size.
"""
# R heads of a call   C queries   P key blocks   S slots per block   D head dim

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
    from .pooling_error import ErrorCall

NAME = "triton"
LOG2E = 1.4426950408889634
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST, MOST_SLOTS = 256, 64
SPAN = 64  # blocks of a program: 10,000 programs in the example above, each of which splits its queries once


def why_not(call: ErrorCall) -> str | None:
    """Why it cannot take a call that `ErrorCall.why_not` lets through, or None. Never waits for the device."""
    k = call.keys.k
    if k.dtype not in DTYPES or call.keys.v.dtype != k.dtype:
        return f"keys are {k.dtype} and values {call.keys.v.dtype}; it takes bfloat16, float16 and float32, both alike"
    if k.shape[3] % UNIT or k.shape[3] > WIDEST:
        return f"the head dim is {k.shape[3]}; it takes multiples of {UNIT} up to {WIDEST}"
    if call.keys.slots.shape[2] > MOST_SLOTS:
        return f"blocks have {call.keys.slots.shape[2]} slots; it takes up to {MOST_SLOTS}"
    return triton_device.why_not(k.device)


def errors(call: ErrorCall) -> Tensor:
    """fp32 [R, C, P]; the contract is that of `pooling_error`."""
    query, keys, last = call.query, call.keys, call.first + len(call.query)
    scale = call.scale * LOG2E
    pooled = torch.bmm(keys.mean[call.first : last], query.transpose(1, 2)).mul_(scale)
    found, tops = torch.empty_like(pooled), torch.empty_like(pooled)
    if found.numel():
        tile = _tile(call)
        parts = -(-query.shape[1] // tile["M"]) * -(-pooled.shape[1] // SPAN)
        with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
            _kernels().error_kernel[(len(query) * parts,)](
                **_arguments(call), **tile, pooled=pooled, errors=found, tops=tops, scale=scale,
            )  # fmt: skip
    found *= tops.sub_(tops.amax(1, keepdim=True)).mul_(2).exp2_()
    return found.transpose(1, 2).contiguous()


def _arguments(call: ErrorCall) -> dict[str, Tensor | int]:
    keys, dim = call.keys, call.query.shape[2]
    return {
        **strided(k=keys.k, v=keys.v), "query": call.query.contiguous(), "slots": keys.slots.contiguous(),
        "value": keys.value.contiguous(), "weight": keys.weight.contiguous(),
        "first": call.first, "queries": call.query.shape[1],
        "blocks": keys.slots.shape[1], "heads": keys.k.shape[2], "share": len(keys.slots) // len(keys.weight),
        "span": SPAN, "S": keys.slots.shape[2], "D": dim, "DP": padded(dim), "SP": padded(keys.slots.shape[2]),
    }  # fmt: skip


def _tile(call: ErrorCall) -> dict[str, int | bool]:
    """Queries of a program, and what Triton makes of them.

    For 9.0 and D = 128 the first takes 128 registers and 66 KB of shared memory, three programs to a multiprocessor,
    and spills nothing; with M = 128 and 4 warps it does, with 8 warps it computes as much at a time. Products that are
    not split leave the matrix units idle: that is for being right rather than for speed.
    """
    wide = call.query.shape[2] > 128
    if call.keys.k.dtype == torch.bfloat16 and call.query.device.type != "cpu":
        return {"M": 32 if wide else 64, "SPLIT": True, "num_warps": 4, "num_stages": 2}
    return {"M": 16 if wide else 32, "SPLIT": False, "num_warps": 4, "num_stages": 1}


@cache
def _kernels() -> ModuleType:
    from . import triton_pooling_error_kernel

    return triton_pooling_error_kernel
