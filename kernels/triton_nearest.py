"""The nearest centroid in Triton: tokens are read once, products stay in registers; CUDA and ROCm.

Tokens are compared as they are. That they are seen from the middle m of the centroids is in what is added to their
products, as (x - m) (c - m) = x (c - m) - m (c - m): nothing of a token is rounded, and none is copied. Centroids are
halved, so that a difference of two float16 numbers is one too. Extra memory: the centroids in the tokens' precision.
"""
# B batch   N tokens   H heads   D head dim   G = B * H   C centroids

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import triton_device
from .triton_arguments import UNIT, padded, strided
from .triton_tiles import Tuner, device_of

if TYPE_CHECKING:
    from .nearest import NearestCall

NAME = "triton"
WIDEST = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TUNER = Tuner("nearest")


@dataclass(frozen=True)
class Tile:
    """Tokens of a program, centroids of a step, and what Triton makes of them."""

    M: int
    N: int
    warps: int
    stages: int


# Compiled for 9.0 (bfloat16, D = 128) none spills. The first leaves room for a second program on a multiprocessor, so
# that one's products hide the other's comparisons: 512 cycles of the matrix units a step, 400 of the others. The second
# reads the centroids half as often, 3 GB instead of 6 from the cache for 1000 of them and 75,600 tokens of 40 heads.
# Which is faster was not measured on a GPU: the tuner does it on the card.
TILES = {
    "wgmma": (Tile(128, 64, 4, 3), Tile(256, 64, 8, 3), Tile(128, 64, 8, 3)),
    "mma": (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    "amd": (Tile(64, 32, 4, 2), Tile(64, 32, 4, 1)),
}
WIDE = {  # D above 128
    "wgmma": (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    "mma": (Tile(64, 32, 4, 2),),
    "amd": (Tile(64, 32, 4, 1),),
}
EXACT = Tile(32, 32, 4, 1)  # float32, which leaves the matrix units idle: for being right rather than for speed


def why_not(call: NearestCall) -> str | None:
    """Why it cannot take a call that `NearestCall.why_not` lets through, or None. Never waits for the device."""
    if call.x.dtype not in DTYPES:
        return f"the tokens are {call.x.dtype}; it takes bfloat16, float16 and float32"
    if call.x.shape[3] % UNIT or call.x.shape[3] > WIDEST:
        return f"the head dim is {call.x.shape[3]}; it takes multiples of {UNIT} up to {WIDEST}"
    return triton_device.why_not(call.x.device)


def label(call: NearestCall) -> Tensor:
    """int32 [G, N]; the contract is that of `nearest`."""
    x = call.x
    (batch, tokens, heads, dim), device = x.shape, x.device
    labels = torch.empty(batch * heads, tokens, dtype=torch.int32, device=device)
    if not labels.numel():
        return labels
    offered = tiles(x)
    given = {**strided(x=x), "labels": labels, "tokens": tokens, "heads": heads, "D": dim, "DP": padded(dim)}
    given |= _prepared(call.centroids, x.dtype, offered[0].N)
    key = device, x.dtype, dim
    with torch.cuda.device(device) if x.is_cuda else nullcontext():
        _launch(given, TUNER.choose(key, list(offered), lambda tile: _launch(given, tile)))
    return labels


def tiles(x: Tensor) -> tuple[Tile, ...]:
    """What to try, the likeliest first; all have the same N."""
    if x.dtype == torch.float32 or x.device.type == "cpu":
        return (EXACT,)
    return (WIDE if x.shape[3] > 128 else TILES)[device_of(x.device).matrix]


def _prepared(centroids: Tensor, dtype: torch.dtype, step: int) -> dict[str, Tensor | int]:
    """Centroids of whole steps, halved, from their middle, and what is added to their products. See the kernel.

    The nearest of the centroids as they are after rounding: that error is along x - c, which is small, not along x.
    """
    middle = centroids.mean(1, keepdim=True)
    spare = -centroids.shape[1] % step
    near = pad(((centroids - middle) * 0.5).to(dtype), (0, 0, 0, spare))
    rounded = near[:, : centroids.shape[1]].float()
    lift = -(rounded * (rounded + middle)).sum(-1)
    return {
        "centroids": near, "clusters": near.shape[1],
        "lift": pad(lift, (0, spare + step), value=-torch.inf),  # a step more, which is read and not used
    }  # fmt: skip


def _launch(given: dict, tile: Tile) -> None:
    programs = len(given["labels"]) * -(-given["tokens"] // tile.M)
    _kernels().nearest_kernel[(programs,)](
        **given, M=tile.M, N=tile.N, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@cache
def _kernels() -> ModuleType:
    from . import triton_nearest_kernel

    return triton_nearest_kernel
