"""Whether Triton kernels can run on a device."""

from __future__ import annotations

import os
from functools import cache

import torch

INTERPRET = "TRITON_INTERPRET"


def why_not(device: torch.device) -> str | None:
    """Why they cannot run there, or None. Never waits for the device."""
    if device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA and ROCm devices, and the tensors are on {device.type}"
    if device.type == "cpu" and os.environ.get(INTERPRET) != "1":
        return f"the tensors are on the CPU, where Triton runs in its interpreter alone ({INTERPRET}=1)"
    interpreted, reason = found()
    if interpreted is None:
        return f"Triton cannot be used: {reason}"
    if device.type == "cpu" and not interpreted:
        return f"{INTERPRET} was set after Triton had been imported"
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


@cache
def found() -> tuple[bool | None, str]:
    """True where Triton interprets, False where it compiles; None without it, and the reason."""
    try:
        from .triton_attend_kernel import INTERPRETED
    except Exception as error:  # broken installs raise more than ImportError
        return None, f"{type(error).__name__}: {error}"
    return INTERPRETED, ""
