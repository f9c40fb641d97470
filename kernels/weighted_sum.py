"""A sum of tensors with scalar weights, in one pass: every forecast of a step cache is one.

Weights are numbers of the host: they are passed by value, so nothing waits for the device and no weight compiles
anything. Products and sums are in float32 and rounded once, whatever the dtype: forecasts subtract numbers that are
nearly alike, and bfloat16 sums of them are noise.
"""
# K tensors

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_weighted_sum
from .dispatch import Backend, Dispatch

# Of 16-bit numbers on the CPU, taken together: their float32 sum is 1 MB, which stays in cache. One core of an EPYC,
# minimum of 5, K = 2 and 3, ms:
#                       whole   2**14   2**16   2**18   2**20
#   bfloat16,  8 MB       6-9     9-10      5     2-6     2-5
#   bfloat16, 32 MB   152-185   45-70   33-49   28-42   35-66     (a copy of it takes 19)
# In float32 whole tensors are the fastest: 8 MB 0.7 and 1.6 against 1.1 and 1.6 in parts of 2**17, 32 MB 19 and 27
# against 23 and 28 in parts of 2**15. torch.lerp takes as long as multiply and add, a stacked matrix product 3 times.
CHUNK = 1 << 18


@dataclass(frozen=True)
class SumCall:
    """The arguments of `weighted_sum`."""

    tensors: tuple[Tensor, ...]
    weights: tuple[float, ...]

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return torch.atleast_1d(self.tensors[0])

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        if not self.tensors:
            return "there is no tensor"
        if len(self.tensors) != len(self.weights):
            return f"there are {len(self.tensors)} tensors and {len(self.weights)} weights"
        first = self.tensors[0]
        if not first.is_floating_point():
            return f"the tensors are {first.dtype}; it takes floating point numbers"
        for x in self.tensors:
            if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
                return (
                    f"{x.dtype} {list(x.shape)} on {x.device} is among {first.dtype} {list(first.shape)} on "
                    f"{first.device}; all must be alike"
                )
        return None


def weighted_sum_reference(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """In float64, all at once; the contract is that of `weighted_sum`."""
    return sum(w * x.double() for w, x in zip(weights, tensors, strict=True)).to(tensors[0].dtype)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], *, backend: str | None = None) -> Tensor:
    """The sum over k of weights[k] * tensors[k], accumulated in float32 (float64 in float64).

    tensors: K >= 1 of one shape, dtype and device, at any strides
    backend: the name of one of BACKENDS, which then must take the call
    returns: a new tensor like one of them; contiguous, unless the strides of all of them agree
    raises: ValueError with the reason of `SumCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(SumCall(tuple(tensors), tuple(map(float, weights))), backend)


def _in_torch(call: SumCall) -> Tensor:
    if call.tensors[0].dtype in (torch.bfloat16, torch.float16):
        return _in_parts(call)
    (x, *others), (w, *weights) = call.tensors, call.weights
    total = x * w
    for x, w in zip(others, weights, strict=True):
        total.add_(x, alpha=w)
    return total


def _in_parts(call: SumCall) -> Tensor:
    """The float32 sum of one part after the other; on a device there is one part."""
    first = call.tensors[0]
    out = first.new_empty(first.shape)
    size = max(1, min(CHUNK, out.numel()) if out.device.type == "cpu" else out.numel())
    parts = [x.reshape(-1).split(size) for x in (out, *call.tensors)]
    sums = torch.empty(size, dtype=torch.float32, device=out.device)
    for into, start, *others in zip(*parts, strict=True):
        total = sums[: len(into)].copy_(start).mul_(call.weights[0])
        for x, w in zip(others, call.weights[1:], strict=True):
            total.add_(x, alpha=w)
        into.copy_(total)
    return out


BACKENDS = Dispatch(
    "A weighted sum",
    (
        Backend(triton_weighted_sum.NAME, triton_weighted_sum.why_not, triton_weighted_sum.weigh),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
