"""Look-up tables of weights: a code stands for one of 2^b whole numbers in int8, shared by a layer or of each row.

Whole numbers, so that decoding for int8 products and for any other use gives the same weight: against tables in float
the squared error of 4-bit codes on Gaussian rows grows by 0.3 %, of 3 bits by 0.1 %, of 2 bits by less.

Source: tables after Lloyd (1982) and Max (1960); the fixed ones are for a normal distribution.
"""
# N outputs   K inputs   L levels, 2^b   M values of a row

from __future__ import annotations

import torch
from torch import Tensor

TOP = 127  # of int8 in use, alike on both sides
# The positive levels of the least squared error on N(0, 1), by bits.
GAUSS = {
    2: (0.452780, 1.510418),
    3: (0.245094, 0.756005, 1.343909, 2.151946),
    4: (0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590),
}
ON_LEVEL = 1e-3  # of the distance of two levels: nearer than this a value is on a level, off it by a rotation and back
ROUNDS = 20  # of a fit; 10 give 0.01 dB less on the layers of the tiny model, 100 no more


def gauss_levels(bits: int, device: torch.device) -> Tensor:
    """[L] float32, ascending, for values of root mean square 1."""
    positive = torch.tensor(GAUSS[bits], dtype=torch.float32, device=device)
    return torch.cat((-positive.flip(0), positive))


def fitted_levels(rows: Tensor, bits: int) -> Tensor:
    """[N, L] float32, ascending: the levels of least squared error on each row, from the Gaussian ones on.

    rows: [N, K], of root mean square about 1
    """
    rows = rows.sort(1).values.double()
    sums = torch.cat((torch.zeros_like(rows[:, :1]), rows.cumsum(1)), 1)
    levels = gauss_levels(bits, rows.device).double().repeat(len(rows), 1)
    ends = torch.tensor([0, rows.shape[1]], device=rows.device).repeat(len(rows), 1)
    for _ in range(ROUNDS):
        inner = torch.searchsorted(rows, (levels[:, 1:] + levels[:, :-1]) / 2)
        edges = torch.cat((ends[:, :1], inner, ends[:, 1:]), 1)
        count = edges.diff()
        levels = torch.where(count > 0, sums.gather(1, edges).diff() / count.clamp_min(1), levels)
    return levels.float()


def whole(levels: Tensor) -> tuple[Tensor, Tensor]:
    """levels: [..., L] -> the same in whole steps, [..., L] int8, and the step, [..., 1]."""
    step = levels.abs().amax(-1, keepdim=True).clamp_min(1e-30) / TOP
    return (levels / step).round().to(torch.int8), step


def nearest(steps: Tensor, table: Tensor) -> Tensor:
    """The codes [N, M] uint8 of the nearest levels. steps: [N, M] float, in steps of the table [L] or [N, L] int8"""
    levels = table.to(steps.dtype)
    return _below((levels[..., 1:] + levels[..., :-1]) / 2, steps).to(torch.uint8)


def one_of_two(steps: Tensor, table: Tensor, seed: int) -> Tensor:
    """As `nearest`, but either of the two levels around a value by chance, so that the mean is the value; values past
    the outer levels take those.
    """
    levels = table.to(steps.dtype).expand(steps.shape[0], -1).contiguous()
    low = _below(levels[:, 1:-1].contiguous(), steps)
    under, over = levels.gather(1, low), levels.gather(1, low + 1)
    share = (steps - under) / (over - under).clamp_min(0.5)  # levels are whole, so 0.5 is for two that are the same
    share = torch.where(share < ON_LEVEL, 0.0, torch.where(share > 1 - ON_LEVEL, 1.0, share))
    generator = torch.Generator(steps.device).manual_seed(seed)
    chance = torch.rand(steps.shape, device=steps.device, generator=generator)
    return (low + (chance < share)).to(torch.uint8)


def looked_up(codes: Tensor, table: Tensor) -> Tensor:
    """codes: [N, M] uint8; table: [L] or [N, L] -> [N, M] in the dtype of the table"""
    at = codes.int()
    if table.ndim == 2:
        at += torch.arange(0, table.numel(), table.shape[1], dtype=torch.int32, device=at.device)[:, None]
    return table.flatten().index_select(0, at.flatten()).view(codes.shape)


def _below(edges: Tensor, steps: Tensor) -> Tensor:
    """How many edges lie below each value, [N, M] int64. edges: [E] or [N, E], ascending"""
    if edges.ndim == 1:
        return torch.bucketize(steps, edges)
    return torch.searchsorted(edges.contiguous(), steps.contiguous())
