"""Rows of activations to int8, one step per row, rotated on the way: what goes into an int8 product.

Everything between is in float32, whatever the dtype: a rotation in float16 may overflow, and in bfloat16 it rounds by
up to a quarter of an int8 step.
"""
# M tokens   K channels

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_round_rows
from .block_hadamard import rotate, rotate_reference
from .dispatch import Backend, Dispatch

TOP = 127
LEAST = 1e-30  # of a step, so that a row of zeros stays one
# Numbers of the rows that are rounded together on the CPU: their float32 copies, 1 MB each, stay in cache.
AT_ONCE = 1 << 18
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RoundCall:
    """The arguments of `round_rows`."""

    x: Tensor
    mask: Tensor | None
    block: int

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.x

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes and dtypes only."""
        if self.x.ndim != 2 or self.x.dtype not in DTYPES:
            return f"the rows are {self.x.dtype} with {self.x.ndim} dims; it takes float32, float16 and bfloat16 with 2"
        if self.x.shape[1] % self.block:
            return f"the rotation block of {self.block} does not divide the {self.x.shape[1]} channels"
        if self.mask is not None and tuple(self.mask.shape) != (self.x.shape[1],):
            return f"the mask is {list(self.mask.shape)}; it takes one number for each channel"
        return None


def round_rows_reference(x: Tensor, mask: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """In float64; the contract is that of `round_rows`."""
    rows = x.double() if mask is None else x.double() * mask.double()
    rows = rotate_reference(rows, block)
    step = rows.abs().amax(dim=1, keepdim=True).clamp_min(LEAST * TOP) / TOP
    return (rows / step).round().to(torch.int8), step.float()


def round_rows(x: Tensor, mask: Tensor | None, block: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Codes [M, K] int8 in -127 to 127 and steps [M, 1] float32, codes * steps = rotation of (x * mask).

    x: [M, K] float32, float16 or bfloat16, at any strides
    mask: [K] float32 or None
    block: of the rotation, a power of 4 that divides K; 1 for none
    backend: the name of one of BACKENDS, which then must take the call
    raises: ValueError with the reason of `RoundCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(RoundCall(x, mask, block), backend)


def _in_torch(call: RoundCall) -> tuple[Tensor, Tensor]:
    x = call.x
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    steps = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    if not x.numel():
        return codes, steps
    size = max(1, AT_ONCE // x.shape[1]) if x.device.type == "cpu" else len(x)
    for start in range(0, len(x), size):
        rows = x[start : start + size].float()
        rows = rotate(rows if call.mask is None else rows * call.mask, call.block)
        step = rows.abs().amax(dim=1, keepdim=True).clamp_min_(LEAST * TOP).div_(TOP)
        codes[start : start + size] = rows.div(step).round_()
        steps[start : start + size] = step
    return codes, steps


BACKENDS = Dispatch(
    "Rounding of rows to int8",
    (
        Backend(triton_round_rows.NAME, triton_round_rows.why_not, triton_round_rows.rounded),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
