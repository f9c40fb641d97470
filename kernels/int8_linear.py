"""A linear layer with int8 weights and activations that are rounded to int8 as they come, one scale per token.

comfy-kitchen has it fused with the block rotation; without it, the same in torch.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .block_hadamard import rotate

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # of the output dtype, as comfy-kitchen counts them


@cache
def why_not_kitchen() -> str | None:
    """Why comfy-kitchen cannot compute it, or None."""
    try:
        import comfy_kitchen  # noqa: F401
    except Exception as error:  # broken installs raise more than ImportError
        return f"comfy_kitchen cannot be imported: {type(error).__name__}: {error}"
    if not hasattr(torch.ops.comfy_kitchen, "int8_linear"):
        return "this comfy_kitchen has no int8_linear"
    return None


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int) -> Tensor:
    """x: [..., K] in the basis before rotation; weight: [N, K] int8, rotated; scale: [N, 1] float32 -> [..., N]

    block: of the rotation, 1 for none
    """
    if why_not_kitchen() is None and x.dtype in CODES:
        return torch.ops.comfy_kitchen.int8_linear(
            x.contiguous(), weight, scale, bias, CODES[x.dtype], block > 1, max(block, 4)
        )
    return int8_linear_reference(x, weight, scale, bias, block)


def int8_linear_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int) -> Tensor:
    """The same in plain torch, products in float32."""
    rows = rotate(x.float(), block)
    step = rows.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
    whole = (rows / step).round().clamp(-127, 127)
    out = whole @ weight.float().t() * step * scale.float().reshape(-1)
    return (out if bias is None else out + bias.float()).to(x.dtype)
