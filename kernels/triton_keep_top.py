"""Lists of kept columns in Triton, from scores and from maps: rows stay in registers, nothing is sorted; CUDA and ROCm.

Extra memory, in bytes, beside arguments and results: 25 for each row, and what sorting 4 takes. Rows of up to 2048
columns have one binary, longer ones one for each power of two; no length and no budget compiles anything else.
"""
# G heads   R rows   K columns   C entries of a list

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import triton_device

if TYPE_CHECKING:
    from .keep_top import KeepCall
    from .list_map import ListCall

NAME = "triton"
# Columns of a row, and of a warp. Up to 64 numbers of each thread stay in registers, and within a warp a count needs no
# shared memory: one instruction adds it up.
MOST, WARP = 1 << 14, 1 << 11
NO_COLUMN = -(1 << 30)


def why_not(call: KeepCall | ListCall) -> str | None:
    """Why it cannot take a call that its own `why_not` lets through, or None. Never waits for the device."""
    if call.q.shape[-1] > MOST:
        return f"there are more than {MOST} columns"
    return triton_device.why_not(call.q.device)


def keep(call: KeepCall) -> tuple[Tensor, Tensor | None]:
    """The contract is that of `keep_top`."""
    (heads, rows, columns), device, extra = call.score.shape, call.score.device, int(call.spare > 0)
    cols = torch.empty(heads, rows, call.width, dtype=torch.int32, device=device)
    counts, worth = torch.empty_like(cols[..., 0]), torch.empty(heads, rows, device=device)
    edge, level = torch.empty(2, 2, heads, rows, dtype=torch.int32, device=device)
    given = {
        "score": call.score.contiguous(), "edge": edge, "level": level, "R": rows, "V": call.video, "K": columns,
        "forced": cols if call.forced is None else call.forced.contiguous().view(torch.uint8),
        "first": call.first, "own": call.first if call.own else NO_COLUMN, "each": call.each - call.own,
        "FORCED": call.forced is not None, **_size(columns),
    }  # fmt: skip
    if cols.numel():
        with torch.cuda.device(device) if call.score.is_cuda else nullcontext():
            _kernels().bounds_kernel[(heads * rows,)](**given, worth=worth)
            granted = _granted(worth, call.spare)
            _kernels().lists_kernel[(heads * rows,)](
                **given, granted=granted, cols=cols, counts=counts, C=call.width, extra=extra
            )
    return cols, counts if extra else None


def listed(call: ListCall) -> tuple[Tensor, Tensor]:
    """The contract is that of `list_map`; entries past a count are not written."""
    keep = call.keep.contiguous().view(torch.uint8)
    cols = torch.empty(*keep.shape[:-1], call.most, dtype=torch.int32, device=keep.device)
    counts = torch.empty(keep.shape[:-1], dtype=torch.int32, device=keep.device)
    if keep.numel():
        with torch.cuda.device(keep.device) if keep.is_cuda else nullcontext():
            _kernels().map_kernel[(counts.numel(),)](
                keep=keep, cols=cols, counts=counts, K=keep.shape[-1], C=call.most, **_size(keep.shape[-1])
            )
    return cols, counts


@cache
def _kernels() -> ModuleType:
    from . import triton_keep_top_kernel

    return triton_keep_top_kernel


def _size(columns: int) -> dict[str, int]:
    size = max(WARP, 1 << (columns - 1).bit_length())
    return {"SIZE": size, "num_warps": size // WARP}


def _granted(worth: Tensor, spare: int) -> Tensor:
    """The `spare` rows of most worth in each head, of equal ones the first: uint8 [G, R]."""
    if not spare:
        return torch.zeros(worth.shape, dtype=torch.uint8, device=worth.device)
    best = worth.sort(dim=-1, descending=True, stable=True).indices[:, :spare]
    return torch.zeros(worth.shape, dtype=torch.uint8, device=worth.device).scatter_(1, best, 1)
