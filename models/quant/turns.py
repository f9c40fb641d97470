"""Orthogonal turns of blocks of channels that spread the loudest ones, and the order that deals them over blocks.

After DuQuant (arXiv 2406.01721): again and again the loudest channel of a block is spread over all of it, and the best
turn on the way is kept; then channels are dealt out by loudness, back and forth. Differs from the paper: loudness is
the root mean square that the calibration's gram foretells after each turn, not a peak among kept activations; and the
second set of turns is the block Hadamard rotation, which kernels fuse.
"""
# K channels   S block   G blocks, K / S

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 128  # channels of a turned block, the paper's
ROUNDS = 32  # the paper has 256; with one to four loud channels a block is no more even after 256
GAIN = 1e-3  # share by which a turn must be better, so that noise of the arithmetic is no reason for one
SEED = 0  # of the turns among the other channels, so that the same stats give the same turns


def zigzag(loudness: Tensor, size: int) -> Tensor:
    """The order [K] int32 in which every block of `size` gets its share of loud channels. loudness: [K]"""
    ranked = loudness.argsort(descending=True, stable=True).view(size, -1)  # dealt out row by row, a column a block
    ranked[1::2] = ranked[1::2].flip(1)
    return ranked.t().flatten().int()


def turned_block(columns: int) -> int:
    """S for rows of this length: SIZE, or the largest power of 2 below it that divides."""
    return next(size for size in (SIZE, 64, 32, 16, 8, 4, 2, 1) if columns % size == 0)


def spreading_turns(gram: Tensor, size: int) -> Tensor:
    """The turns [G, S, S] float32 whose loudest channel is the least loud. gram: [K, K] of the activations"""
    blocks = gram.double().unflatten(0, (-1, size)).unflatten(2, (-1, size))
    left = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()  # [G, S, S]
    turns = torch.eye(size, dtype=torch.float64, device=gram.device).expand_as(left).contiguous()
    best, least = turns, _loudest(left)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(ROUNDS):
        step = _swapped(_spread(size, generator).to(left.device), left.diagonal(dim1=1, dim2=2).argmax(1))
        turns, left = turns @ step, step.mT @ left @ step
        now = _loudest(left)
        better = now < least * (1 - GAIN)
        best, least = torch.where(better[:, None, None], turns, best), torch.where(better, now, least)
    return best.float()


def _loudest(gram: Tensor) -> Tensor:
    """[G, S, S] -> [G], largest mean square."""
    return gram.diagonal(dim1=1, dim2=2).amax(1)


def _spread(size: int, generator: torch.Generator) -> Tensor:
    """[S, S] orthogonal: channel 0 goes evenly to all, the others are turned at random first."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    first = torch.eye(size, dtype=torch.float64)
    first[0] = size**-0.5
    # Rows: row 0 is even, the others complete it to an orthonormal basis.
    even = torch.linalg.qr(first.t()).Q.t()
    others = torch.block_diag(torch.ones(1, 1, dtype=torch.float64),
                              torch.linalg.qr(torch.randn(size - 1, size - 1, dtype=torch.float64,
                                                          generator=generator)).Q)  # fmt: skip
    return others @ even


def _swapped(step: Tensor, loud: Tensor) -> Tensor:
    """[G, S, S]: the step with channel 0 and the loud one of each block in each other's place, before and after.
    loud: [G]
    """
    places = torch.arange(len(step), device=step.device).repeat(len(loud), 1)
    rows = torch.arange(len(loud), device=step.device)
    places[rows, 0], places[rows, loud] = loud, 0
    return step[places[:, :, None], places[:, None, :]]
