"""A linear layer with a quantised weight."""
# M tokens   N outputs   K inputs

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels import triton_device
from ...kernels.int8_linear import how, int8_linear
from .basis import Basis
from .format import FORMATS, Coded, dense, rows_of

# Weights that are decoded together: their float32 copies take 4 bytes each, on the CPU 4 MB.
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 24}
TURNED = 1 << 24  # activations that are turned together, in float32

# Who is told how each layer ran: (format, bits, path). Set for the time of one evaluation of the model.
told: ContextVar[Callable[[str, int, str], None] | None] = ContextVar("interspatial_quant_told", default=None)


def linear(x: Tensor, coded: Coded, bias: Tensor | None, act_bits: int) -> Tensor:
    """x: [..., K] -> [..., N] in the dtype of x.

    act_bits: 8 rounds each token to int8 and multiplies whole numbers; 16 leaves activations as they are, and the
    weight is decoded for this call
    """
    if act_bits == 8:
        return _whole(x, coded, bias)
    _tell(coded, lambda: f"decoded to {str(x.dtype).removeprefix('torch.')}")
    return F.linear(*_decoded(x, coded), None if bias is None else bias.to(x.dtype))


def _whole(x: Tensor, coded: Coded, bias: Tensor | None) -> Tensor:
    weight, scale = FORMATS[coded.format].integers(coded)
    basis = coded.basis
    if basis.turns is not None:
        return _turned(x, weight, scale, bias, coded)
    mask = basis.mask
    if basis.order is not None:  # both are put into order, so that the mask stays part of the rounding
        x, mask = x.index_select(-1, basis.order), None if mask is None else mask.index_select(0, basis.order)
    given = (x, weight, scale, bias, basis.block, mask)
    _tell(coded, lambda: how(*given))
    return int8_linear(*given)


def _turned(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, coded: Coded) -> Tensor:
    """In float32, because turned channels are rounded to int8 next; a part after the other, because of its size."""
    basis = coded.basis
    _tell(coded, lambda: how(x, weight, scale, bias, basis.block))
    rows = x.reshape(-1, x.shape[-1])
    parts = rows.split(max(1, TURNED // max(1, x.shape[-1])))
    made = (int8_linear(basis.before_rotation(part.float()), weight, scale, bias, basis.block) for part in parts)
    return torch.cat([part.to(x.dtype) for part in made]).view(*x.shape[:-1], weight.shape[0])


def _tell(coded: Coded, path: Callable[[], str]) -> None:
    if (tell := told.get()) is not None:
        tell(coded.format, coded.bits, path() + _missing(coded))


def _missing(coded: Coded) -> str:
    """Why codes on a device are decoded by nothing better than torch; nothing to say on the CPU."""
    if coded.bits == 8 or coded.codes.device.type == "cpu":
        return ""
    reason = triton_device.why_not(coded.codes.device)
    return f"; codes decoded in torch: {reason}" if reason else ""


def _decoded(x: Tensor, coded: Coded) -> tuple[Tensor, Tensor]:
    """Activation and weight in one basis: whichever is smaller is brought into the other's.

    In float16 it is the weight: rotated activations may be 16 times as large, and overflow.
    """
    rotated = x.dtype != torch.float16 and x.numel() <= coded.shape[0] * coded.shape[1]
    rows = max(1, AT_ONCE.get(x.device.type, 1 << 24) // coded.shape[1])
    weight = torch.empty(coded.shape, dtype=x.dtype, device=x.device)
    for start in range(0, coded.shape[0], rows):
        part = rows_of(coded, start, start + rows)
        part = replace(part, basis=Basis()) if rotated else part
        weight[start : start + rows] = dense(part)
    return (coded.basis.activation(x) if rotated else x), weight
