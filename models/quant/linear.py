"""A linear layer with a quantised weight."""
# M tokens   N outputs   K inputs

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.int8_linear import int8_linear, why_not_kitchen
from .format import FORMATS, Coded, dense

# Who is told how each layer ran: (format, bits, path). Set for the time of one evaluation of the model.
told: ContextVar[Callable[[str, int, str], None] | None] = ContextVar("interspatial_quant_told", default=None)


def linear(x: Tensor, coded: Coded, bias: Tensor | None, act_bits: int) -> Tensor:
    """x: [..., K] -> [..., N] in the dtype of x.

    act_bits: 8 rounds each token to int8 and multiplies whole numbers; 16 leaves activations as they are, and the
    weight is decoded for this call
    """
    path = "int8 products" if act_bits == 8 else "decoded to " + str(x.dtype).removeprefix("torch.")
    if act_bits == 8 and (reason := why_not_kitchen()):
        path += f" in plain torch: {reason}"
    if (tell := told.get()) is not None:
        tell(coded.format, coded.bits, path)
    if act_bits == 8:
        weight, scale = FORMATS[coded.format].integers(coded)
        return int8_linear(coded.basis.before_rotation(x), weight, scale, bias, coded.basis.block)
    return F.linear(*_decoded(x, coded), None if bias is None else bias.to(x.dtype))


def _decoded(x: Tensor, coded: Coded) -> tuple[Tensor, Tensor]:
    """Activation and weight in one basis: whichever is smaller is brought into the other's."""
    if x.numel() > coded.shape[0] * coded.shape[1]:
        return x, dense(coded).to(x.dtype)
    weight = FORMATS[coded.format].values(coded) * coded.scale
    turned = coded.basis.activation(x.float() if x.dtype == torch.float16 else x)
    return turned.to(x.dtype), weight.to(x.dtype)
