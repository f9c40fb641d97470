"""`linear` and `dense` for tensors that torch.compile looks through: one operation each, whose inside stays as it is.

What is inside chooses by device and dtype, keeps tables between calls and starts kernels of its own; none of it can be
done with the stand-ins that a compiler passes.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

import torch
from torch import Tensor

from .basis import Basis
from .format import Coded
from .format import dense as dense_now
from .linear import linear as linear_now

TENSORS = "Tensor codes, Tensor scale, Tensor? table, Tensor? mask, Tensor? turns, Tensor? order"
NUMBERS = "str form, int bits, int rows, int columns, int block"


def linear(x: Tensor, coded: Coded, bias: Tensor | None, act_bits: int) -> Tensor:
    """As `linear.linear`."""
    if not _stands_in(x):
        return linear_now(x, coded, bias, act_bits)
    return torch.ops.interspatial.quant_linear(x, bias, act_bits, *_taken_apart(coded))


def dense(coded: Coded) -> Tensor:
    """As `format.dense`."""
    if not _stands_in(coded.codes):
        return dense_now(coded)
    return torch.ops.interspatial.quant_dense(*_taken_apart(coded))


def _stands_in(x: Tensor) -> bool:
    return type(x) not in (Tensor, torch.nn.Parameter)


def _taken_apart(coded: Coded) -> tuple:
    basis = coded.basis
    return (coded.codes, coded.scale, coded.table, basis.mask, basis.turns, basis.order,
            coded.format, coded.bits, *coded.shape, basis.block)  # fmt: skip


def _put_together(codes, scale, table, mask, turns, order, form, bits, rows, columns, block) -> Coded:
    return Coded(form, bits, (rows, columns), codes, scale, table, Basis(block, mask, turns, order))


@torch.library.custom_op(
    "interspatial::quant_linear", mutates_args=(),
    schema=f"(Tensor x, Tensor? bias, int act_bits, {TENSORS}, {NUMBERS}) -> Tensor",
)  # fmt: skip
def _linear(x, bias, act_bits, *parts):
    return linear_now(x, _put_together(*parts), bias, act_bits)


@_linear.register_fake
def _linear_shape(x, bias, act_bits, *parts):
    return x.new_empty((*x.shape[:-1], _put_together(*parts).shape[0]))


@torch.library.custom_op("interspatial::quant_dense", mutates_args=(), schema=f"({TENSORS}, {NUMBERS}) -> Tensor")
def _dense(*parts):
    return dense_now(_put_together(*parts))


@_dense.register_fake
def _dense_shape(*parts):
    coded = _put_together(*parts)
    return coded.scale.new_empty(coded.shape)
