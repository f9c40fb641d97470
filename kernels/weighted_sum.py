"""A sum of tensors with scalar weights, in float32, rounded once."""
# K tensors

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum_reference(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """In float64, all at once; the contract is that of `weighted_sum`."""
    total = sum(w * x.double() for w, x in zip(weights, tensors, strict=True))
    return total.to(tensors[0].dtype)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum over k of weights[k] * tensors[k], accumulated in float32.

    tensors: K >= 1 of one shape, dtype and device
    returns: a new tensor like one of them
    """
    total = tensors[0].float() * weights[0]
    for x, w in zip(tensors[1:], weights[1:], strict=True):
        total.add_(x.float() if x.dtype != torch.float32 else x, alpha=w)
    return total.to(tensors[0].dtype)
