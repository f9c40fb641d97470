"""Error feedback: what rounding one column loses is made up for by the columns after it.

The error that counts is that of the outputs, (W - Q) H (W - Q)^T with H the gram of the activations. Columns are
rounded in turn; the error of each, seen through H, is taken from those that are still open. Scales and tables are
fixed before.

Source: GPTQ (arXiv 2210.17323), for groups of columns the block LDLQ of QuIP# (arXiv 2402.04396).
"""
# N outputs   K inputs   D columns of a group

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .basis import Basis
from .stats import LayerStats

SPAN = 128  # columns between two updates of all that follow: few large products instead of one small one per column


def fed_back(
    weight: Tensor, gram: Tensor, round_columns: Callable[[Tensor, int], Tensor], group: int = 1, damp: float = 0.01
) -> Tensor:
    """The rounded weight [N, K] float32, all of it returned by `round_columns`.

    weight: [N, K] in the coded basis
    gram: [K, K] of the activations in the coded basis, see `gram_in`; any factor of it gives the same
    round_columns: rounds [N, D] float32, columns from the given number on, to values that the format has
    group: D, rounded together; divides K
    damp: share of the mean of the gram's diagonal that is added to the diagonal
    raises: ValueError for a gram that is not finite or of another size, or a group that does not divide K
    """
    columns = weight.shape[1]
    if columns % group or tuple(gram.shape) != (columns, columns):
        raise ValueError(
            f"Error feedback over {columns} inputs got a gram of {list(gram.shape)} and groups of {group}. A gram of "
            "[inputs, inputs] and a group that divides the inputs are accepted."
        )
    return feed(weight, carries(gram, group, damp), round_columns, group)


def feed(weight: Tensor, carry: Tensor, round_columns: Callable[[Tensor, int], Tensor], group: int = 1) -> Tensor:
    """As `fed_back`; rows do not touch each other, so a large weight may come in parts. carry: [K, K], `carries`"""
    carry, columns = carry.to(weight.device, torch.float32), weight.shape[1]
    left, found = weight.float().clone(), torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    span = max(SPAN // group, 1) * group
    for start in range(0, columns, span):
        end = min(start + span, columns)
        lost = torch.empty_like(left[:, start:end])
        for i in range(start, end, group):
            j = i + group
            found[:, i:j] = round_columns(left[:, i:j], i)
            lost[:, i - start : j - start] = left[:, i:j] - found[:, i:j]
            left[:, j:end] -= lost[:, i - start : j - start] @ carry[i:j, j:end]
        left[:, end:] -= lost @ carry[start:end, end:]
    return found


def carries(gram: Tensor, group: int = 1, damp: float = 0.01) -> Tensor:
    """[K, K] float64, how much of a column's error goes to the columns after its group: U_d^-1 U, where U^T U is the
    inverse of the damped gram, and U_d its blocks on the diagonal. Columns that no activation reaches carry nothing.

    raises: ValueError for a gram that is not finite
    """
    gram = gram.double()
    if not bool(gram.isfinite().all()):
        raise ValueError("The gram of a layer's activations holds values that are not finite. Calibrate anew.")
    level = gram.diagonal().mean().clamp_min(1e-30)
    gram = gram / level + damp * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    rows = upper.unflatten(0, (-1, group))  # [K/D, D, K]
    blocks = rows.unflatten(2, (-1, group)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [K/D, D, D]
    return torch.linalg.solve_triangular(blocks, rows, upper=True).flatten(0, 1)


def carry_in(basis: Basis, stats: LayerStats | None, device: torch.device) -> Tensor | None:
    """`carries` of a layer in its coded basis, on a device; None where the calibration kept no gram."""
    if stats is None or stats.gram is None:
        return None
    return carries(gram_in(basis, stats.gram.to(device)))


def gram_in(basis: Basis, gram: Tensor) -> Tensor:
    """[K, K] of activations x -> the same of B x: B H B^T."""
    half = basis.activation(gram.float())
    return basis.activation(half.t())
