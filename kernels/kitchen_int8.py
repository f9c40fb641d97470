"""The int8 linear layer by comfy-kitchen, where it has kernels for the device: rotation, rounding and product fused.

Its backend in plain torch is not asked for: it transposes the weight with every call and rotates in the dtype of the
activations. ComfyUI 0.30 has its CUDA kernels from CUDA 13 on, its Triton ones with --enable-triton-backend.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .int8_linear import LinearCall

NAME = "comfy_kitchen"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of the result, as comfy-kitchen counts them
SMALLEST = 4  # rotation block that it names; not applied without a rotation


def why_not(call: LinearCall) -> str | None:
    """Why it cannot take a call that `LinearCall.why_not` lets through, or None. Never waits for the device."""
    if call.x.device.type == "cpu":
        return "it has no kernels for the CPU"
    if not call.x.numel():
        return "there are no tokens"
    kitchen, reason = _kitchen()
    if kitchen is None:
        return reason
    try:
        chosen = kitchen.registry.get_capable_backend("int8_linear", _arguments(call, call.x))
    except kitchen.NoCapableBackendError:
        return "comfy_kitchen has no backend for the call"
    return "comfy_kitchen would compute it in plain torch on this device" if chosen == "eager" else None


def linear(call: LinearCall) -> Tensor:
    """The contract is that of `int8_linear`; x [M, K]."""
    given = _arguments(call, _masked(call))
    return torch.ops.comfy_kitchen.int8_linear(
        given["x"], given["weight"], given["weight_scale"], given["bias"], DTYPES.index(call.x.dtype),
        given["convrot"], given["convrot_groupsize"],
    )  # fmt: skip


def _masked(call: LinearCall) -> Tensor:
    """Activations as its kernels take them. In float16 a mask, or a rotation that is not fused, may overflow."""
    x = call.x.float() if call.x.dtype == torch.float16 and (call.mask is not None or call.block > 1) else call.x
    return (x if call.mask is None else x * call.mask.to(x.dtype)).contiguous()


def _arguments(call: LinearCall, x: Tensor) -> dict:
    return {
        "x": x, "weight": call.weight, "weight_scale": call.scale, "bias": call.bias,
        "out_dtype": call.x.dtype, "convrot": call.block > 1, "convrot_groupsize": max(call.block, SMALLEST),
        "input_act": None,
    }  # fmt: skip


@cache
def _kitchen() -> tuple[ModuleType | None, str]:
    """The package with its registry, or why there is none."""
    try:
        import comfy_kitchen
    except Exception as error:  # broken installs raise more than ImportError
        return None, f"comfy_kitchen cannot be imported: {type(error).__name__}: {error}"
    wanted = all(hasattr(comfy_kitchen, name) for name in ("registry", "NoCapableBackendError"))
    if not wanted or not hasattr(torch.ops.comfy_kitchen, "int8_linear"):
        return None, "this comfy_kitchen has no int8_linear"
    return comfy_kitchen, ""
