"""Block Hadamard rotation of rows: the basis in which outliers of single channels are spread over a block.

The matrix is the regular one (every row sum alike), a Kronecker power of one of size 4, as comfy-kitchen's ConvRot and
its int8 linear have it: symmetric and orthonormal, so it is its own inverse.
"""
# K channels   S block

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SIZES = (256, 64, 16)  # powers of 4; the largest that divides K is taken


def block_of(columns: int) -> int:
    """The rotation block of rows of this length, 1 where none fits."""
    return next((size for size in SIZES if columns % size == 0), 1)


@cache
def hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[S, S] in this dtype. raises: ValueError for a size that is no power of 4"""
    h4 = torch.ones(4, 4, dtype=torch.float64)
    h4[range(4), range(3, -1, -1)] = -1  # rows 1 1 1 -1, 1 1 -1 1, 1 -1 1 1, -1 1 1 1
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < size:
        h = torch.kron(h, h4) / 2
    if h.shape[0] != size:
        raise ValueError(f"A rotation block of {size} is no power of 4.")
    return h.to(device=device, dtype=dtype)


def rotate(x: Tensor, size: int) -> Tensor:
    """x: [..., K] -> [..., K], each block of `size` channels rotated; of `size` 1: x itself. Its own inverse."""
    if size == 1:
        return x
    blocks = x.unflatten(-1, (-1, size))
    return (blocks @ hadamard(size, x.device, x.dtype)).flatten(-2)
