"""The int8 linear layer in Triton: rows are rounded by `round_rows`, then one product that scales as it writes.

For GPUs where comfy-kitchen would compute in plain torch. Which tile runs is found by running each once, for every
shape of a weight and for few or many tokens.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import triton_device
from .round_rows import round_rows
from .triton_tiles import Tuner

if TYPE_CHECKING:
    from .int8_linear import LinearCall

NAME = "triton"
UNIT = 16  # int8 numbers in the widest load
MANY = 512  # tokens; below, tiles of fewer rows leave no multiprocessor idle
TUNER = Tuner("int8")


@dataclass(frozen=True)
class Tile:
    """Tokens, outputs and inputs of a step of a program, and what Triton makes of them."""

    M: int
    N: int
    K: int
    warps: int
    stages: int


# Tiles of this kind are what int8 products use on these cards; of those here all compile within the shared memory of
# 8.0, 9.0 and gfx942. Not measured on a GPU: the tuner does it on the card, bench/quant/speed_gpu.py tells.
FEW = (Tile(32, 128, 128, 4, 3), Tile(64, 128, 128, 4, 3))
NVIDIA = (Tile(128, 128, 128, 8, 3), Tile(128, 256, 64, 8, 3), Tile(128, 256, 128, 8, 3), Tile(128, 128, 64, 4, 4))
AMD = (Tile(128, 128, 64, 4, 2), Tile(128, 128, 128, 8, 2), Tile(64, 128, 128, 4, 2))
INTERPRETED = (Tile(16, 32, 32, 4, 1),)


def why_not(call: LinearCall) -> str | None:
    """Why it cannot take a call that `LinearCall.why_not` lets through, or None. Never waits for the device."""
    if call.x.shape[1] % UNIT:
        return f"the inputs are no multiple of {UNIT}"
    return triton_device.why_not(call.x.device)


def linear(call: LinearCall) -> Tensor:
    """The contract is that of `int8_linear`; x [M, K]."""
    out = torch.empty((call.x.shape[0], call.weight.shape[0]), dtype=call.x.dtype, device=call.x.device)
    if not out.numel():
        return out
    codes, steps = round_rows(call.x, call.mask, call.block)
    given = {
        "x": codes, "weight": call.weight.contiguous(), "steps": steps, "scale": call.scale.contiguous(),
        "bias": call.scale if call.bias is None else call.bias.contiguous(), "out": out, "tokens": out.shape[0],
        "outputs": out.shape[1], "units": codes.shape[1] // UNIT, "BIASED": call.bias is not None,
    }  # fmt: skip
    many = out.shape[0] >= MANY
    key = (out.device, tuple(call.weight.shape), many)
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        _launch(given, TUNER.choose(key, list(tiles(out.device, many)), lambda tile: _launch(given, tile)))
    return out


def tiles(device: torch.device, many: bool) -> tuple[Tile, ...]:
    """What to try, the likeliest first."""
    if device.type == "cpu":
        return INTERPRETED
    if not many:
        return FEW
    return AMD if torch.version.hip else NVIDIA


def _launch(given: dict, tile: Tile) -> None:
    programs = -(-given["tokens"] // tile.M) * -(-given["outputs"] // tile.N)
    even = not given["units"] * UNIT % tile.K
    _kernels().int8_kernel[(programs,)](
        **given, EVEN=even, UNIT=UNIT, BM=tile.M, BN=tile.N, BK=tile.K, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@cache
def _kernels() -> ModuleType:
    from . import triton_int8_kernel

    return triton_int8_kernel
