"""A linear layer with int8 weights and activations that are rounded to int8 as they come, one step per token.

Tokens are not told apart: a few go the same way as many, so that prompts together or one by one give the same. The
backend in torch takes the weight as it lies, without a transposed copy. One core of an EPYC with AVX-512 VNNI, best of
3, 4096 tokens, [N, K] = [1536, 1536]: `_int_mm` 44 ms, the product in bfloat16 92, in float32 200; with 320 tokens 4.3,
8.0 and 23. So a weight of 8 bits is never decoded to be multiplied.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import kitchen_int8, triton_int8
from .block_hadamard import rotate_reference
from .dispatch import Backend, Dispatch
from .round_rows import DTYPES, round_rows

# Tokens whose products are made together: in int32 and float32 they take AT_ONCE numbers each.
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
UNIT = 8  # torch's int8 product on GPUs takes K and N that are multiples of it, and more than 16 rows
ROWS = 32


@dataclass(frozen=True)
class LinearCall:
    """The arguments of `int8_linear`, x as [M, K]."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    block: int
    mask: Tensor | None

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.x

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes and dtypes only."""
        if self.x.ndim != 2 or self.x.dtype not in DTYPES:
            return f"activations are {self.x.dtype}; it takes float32, float16 and bfloat16"
        if self.weight.dtype != torch.int8 or self.weight.ndim != 2 or self.weight.shape[1] != self.x.shape[1]:
            return f"the weight is {self.weight.dtype} {list(self.weight.shape)}; it takes int8 [N, {self.x.shape[1]}]"
        if self.scale.numel() != self.weight.shape[0]:
            return f"there are {self.scale.numel()} scales for {self.weight.shape[0]} outputs"
        if self.bias is not None and self.bias.numel() != self.weight.shape[0]:
            return f"there are {self.bias.numel()} biases for {self.weight.shape[0]} outputs"
        if self.x.shape[1] % self.block:
            return f"the rotation block of {self.block} does not divide the {self.x.shape[1]} inputs"
        return None


def int8_linear_reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int, mask: Tensor | None = None
) -> Tensor:
    """In float64; the contract is that of `int8_linear`."""
    rows = rotate_reference(x.double() if mask is None else x.double() * mask.double(), block)
    step = rows.abs().amax(dim=-1, keepdim=True).clamp_min(1e-28) / 127
    out = (rows / step).round() @ weight.double().t() * step * scale.double().reshape(-1)
    return (out if bias is None else out + bias.double()).to(x.dtype)


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int, mask: Tensor | None = None,
    *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Rotation of (x * mask), rounded, times the weight: [..., N] in the dtype of x.

    x: [..., K] in the basis before mask and rotation, at any strides
    weight: [N, K] int8 in the basis after them; scale: [N, 1] float32; bias: [N] or None
    block: of the rotation, 1 for none; mask: [K] float32 or None
    backend: the name of one of BACKENDS, which then must take the call
    raises: ValueError with the reason of `LinearCall.why_not`, or of the backend that was asked for
    """
    out = BACKENDS.run(LinearCall(x.reshape(-1, x.shape[-1]), weight, scale, bias, block, mask), backend)
    return out.view(*x.shape[:-1], weight.shape[0])


def how(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int, mask: Tensor | None = None) -> str:
    """By what `int8_linear` computes such a call, and why by nothing better, in words without numbers."""
    reasons = BACKENDS.reasons(LinearCall(x.reshape(-1, x.shape[-1]), weight, scale, bias, block, mask))
    name = next(name for name, reason in reasons.items() if reason is None)
    if name == "float32":
        return f"products in float32: {reasons['torch']}"
    if name == "torch" and x.device.type != "cpu":
        return f"int8 products by torch: {reasons[triton_int8.NAME]}"
    return f"int8 products by {name}"


def _why_not_torch(call: LinearCall) -> str | None:
    kind = call.x.device.type
    if kind == "cpu":
        # without it, sums of two products in 16 bits may saturate
        has = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        return None if has else "this CPU has no int8 products (AVX-512 VNNI)"
    if kind != "cuda":
        return f"torch has no int8 products on {kind}"
    if not torch.version.hip and torch.cuda.get_device_capability(call.x.device) < (7, 5):
        return "the GPU is older than compute capability 7.5"
    return None


def _in_torch(call: LinearCall) -> Tensor:
    weight, outputs = call.weight, call.weight.shape[0]
    if call.x.is_cuda and (weight.shape[0] % UNIT or weight.shape[1] % UNIT):
        weight = torch.nn.functional.pad(weight, (0, -weight.shape[1] % UNIT, 0, -weight.shape[0] % UNIT))
    return _in_parts(call, lambda codes: _int_mm(codes, weight)[: len(codes), :outputs])


def _int_mm(codes: Tensor, weight: Tensor) -> Tensor:
    """[M, K] int8, [N, K'] int8 -> [M or more, N] int32. K': K or padded with zeros"""
    rows = ROWS - len(codes) if codes.is_cuda and len(codes) < ROWS else 0
    if rows or codes.shape[1] != weight.shape[1]:
        codes = torch.nn.functional.pad(codes, (0, weight.shape[1] - codes.shape[1], 0, rows))
    return torch._int_mm(codes, weight.t())


def _in_float(call: LinearCall) -> Tensor:
    weight = call.weight.float()
    return _in_parts(call, lambda codes: codes.float() @ weight.t())


def _in_parts(call: LinearCall, product) -> Tensor:
    """The layer, a part of the tokens after the other. product: [M, K] int8 -> [M, N], int32 or float32"""
    x, outputs = call.x, call.weight.shape[0]
    out = torch.empty((len(x), outputs), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    scale = call.scale.reshape(-1)
    bias = None if call.bias is None else call.bias.float()
    size = max(ROWS, AT_ONCE.get(x.device.type, 1 << 26) // outputs)
    for start in range(0, len(x), size):
        codes, steps = round_rows(x[start : start + size], call.mask, call.block)
        part = (product(codes) * steps).mul_(scale)
        out[start : start + size] = part if bias is None else part.add_(bias)
    return out


BACKENDS = Dispatch(
    "An int8 linear layer",
    (
        Backend(kitchen_int8.NAME, kitchen_int8.why_not, kitchen_int8.linear),
        Backend(triton_int8.NAME, triton_int8.why_not, triton_int8.linear),
        Backend("torch", _why_not_torch, _in_torch),
        Backend("float32", lambda call: None, _in_float),
    ),
)
