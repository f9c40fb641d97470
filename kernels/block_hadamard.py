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
ROOT = 16  # the block of 256 is a product of two of these
# Numbers that are rotated together on the CPU. In float32, [4096, 1536], one core of an EPYC with AVX-512, best of 3:
# 38 ms with one product by the matrix of 256, 21 by two of 16 over all at once, 12 in parts of 2**17 to 2**18;
# butterflies of 4 in torch take 66 and more.
AT_ONCE = 1 << 18


def block_of(columns: int) -> int:
    """The rotation block of rows of this length, 1 where none fits."""
    return next((size for size in SIZES if columns % size == 0), 1)


@cache
def hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[S, S] in this dtype. raises: ValueError for a size that is no power of 4"""
    with torch.inference_mode(False):  # it is kept, and a later call may want gradients
        h4 = torch.ones(4, 4, dtype=torch.float64)
        h4[range(4), range(3, -1, -1)] = -1  # rows 1 1 1 -1, 1 1 -1 1, 1 -1 1 1, -1 1 1 1
        h = torch.ones(1, 1, dtype=torch.float64)
        while h.shape[0] < size:
            h = torch.kron(h, h4) / 2
        if h.shape[0] != size:
            raise ValueError(f"A rotation block of {size} is no power of 4.")
        return h.to(device=device, dtype=dtype)


def rotate_reference(x: Tensor, size: int) -> Tensor:
    """The contract is that of `rotate`."""
    if size == 1:
        return x
    blocks = x.unflatten(-1, (-1, size))
    return (blocks @ hadamard(size, x.device, x.dtype)).flatten(-2)


def rotate(x: Tensor, size: int) -> Tensor:
    """x: [..., K] -> [..., K], each block of `size` channels rotated; of `size` 1: x itself. Its own inverse."""
    if size != ROOT**2 or x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel():
        return rotate_reference(x, size)
    parts = [_by_root(part) for part in x.reshape(-1, size).split(AT_ONCE // size)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)


def _by_root(blocks: Tensor) -> Tensor:
    """Rows and columns of each block, as a square, by the smaller matrix: [M, 256] -> [M, 256]"""
    h = hadamard(ROOT, blocks.device, blocks.dtype)
    rows = blocks.reshape(-1, ROOT) @ h
    return (h @ rows.view(-1, ROOT, ROOT)).view(-1, ROOT**2)
