"""Quantised weights as ComfyUI's QuantizedTensor: one layout per format, registered with its machinery.

LoRA, streaming, offloading and saving stay core's: a layout only says how to quantise, dequantise and multiply.
Source: comfy_kitchen/tensor/base.py 0.2.26, comfy/ops.py and comfy/quant_ops.py of ComfyUI 0.30.0.
"""
# N outputs   K inputs

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedLayout, QuantizedTensor, register_layout_class, register_layout_op
from comfy_kitchen.tensor.base import BaseLayoutParams, dequantize_args
from torch import Tensor

from ..quant.basis import Basis
from ..quant.compiled import dense, linear
from ..quant.format import FORMATS, Coded, Format
from ..quant.weights_file import OURS, as_marker, conf_of

FIELDS = ("scale", "table", "mask", "turns", "order")  # of Params that may hold tensors


@dataclass(frozen=True)
class CodedParams(BaseLayoutParams):
    """Everything of a `Coded` but its codes. transposed: the tensor stands for the transposed weight"""

    table: Tensor | None = None
    mask: Tensor | None = None
    turns: Tensor | None = None
    order: Tensor | None = None
    bits: int = 8
    block: int = 1
    act_bits: int = 8
    transposed: bool = False

    def _tensor_fields(self) -> list[str]:
        return [name for name in FIELDS if getattr(self, name) is not None]


class CodedLayout(QuantizedLayout):
    """What the layouts of all formats share."""

    form: Format
    name: str
    Params = CodedParams

    @classmethod
    def quantize(cls, tensor, scale=None, stochastic_rounding=0, inplace_ops=False, like=None, **options):
        """like: a `QuantizedTensor` whose basis, tables and width are kept, for LoRA. Else options: bits, act_bits."""
        if like is None:
            act_bits = options.pop("act_bits", 8)
            coded = cls.form.encode(tensor, **options)
        else:
            act_bits = like._params.act_bits
            coded = cls.form.recode(coded_of(like), tensor, stochastic_rounding or 0)
        return coded.codes, params_of(coded, tensor.dtype, act_bits)

    @classmethod
    def dequantize(cls, qdata, params):
        return dense(_coded(cls.form.name, qdata, params)).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return tuple(coded_of(qtensor).tensors().values())

    @classmethod
    def state_dict_tensors(cls, qdata, params):
        return _coded(cls.form.name, qdata, params).tensors()

    @classmethod
    def requantize_kwargs(cls, qtensor):
        return {"like": qtensor}


def params_of(coded: Coded, dtype: torch.dtype, act_bits: int) -> CodedParams:
    basis = coded.basis
    return CodedParams(coded.scale, dtype, coded.shape, coded.table, basis.mask, basis.turns, basis.order,
                       coded.bits, basis.block, act_bits)  # fmt: skip


def as_weight(coded: Coded, dtype: torch.dtype, act_bits: int) -> QuantizedTensor:
    """A weight for ComfyUI that computes in `dtype`."""
    return QuantizedTensor(coded.codes, layout_name(coded.format), params_of(coded, dtype, act_bits))


def coded_of(weight: QuantizedTensor) -> Coded:
    """The inverse of `as_weight`."""
    return _coded(weight.layout_cls.form.name, weight._qdata, weight._params)


def is_coded(weight) -> bool:
    """True for a weight in one of this pack's formats."""
    return isinstance(weight, QuantizedTensor) and issubclass(weight.layout_cls, CodedLayout)


def marker_of(weight: QuantizedTensor) -> Tensor:
    """The marker that a file has for this weight."""
    return as_marker(conf_of(coded_of(weight), weight._params.act_bits))


def layout_name(format_name: str) -> str:
    return f"Interspatial_{format_name}_Layout"


def algo_name(format_name: str) -> str:
    """The format's name among ComfyUI's."""
    return OURS + format_name


def _coded(name: str, codes: Tensor, params: CodedParams) -> Coded:
    rows, columns = params.orig_shape[::-1] if params.transposed else params.orig_shape
    basis = Basis(params.block, params.mask, params.turns, params.order)
    return Coded(name, params.bits, (rows, columns), codes, params.scale, params.table, basis)


def _linear(qt, args, kwargs):
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    if not is_coded(weight) or weight._params.transposed or isinstance(x, QuantizedTensor):
        return torch.nn.functional.linear(*dequantize_args(args), **dequantize_args(kwargs))
    return linear(x, coded_of(weight), bias, weight._params.act_bits)


def _transposed(qt, args, kwargs):
    params = qt._params
    flipped = dataclasses.replace(params, orig_shape=params.orig_shape[::-1], transposed=not params.transposed)
    return QuantizedTensor(qt._qdata, qt._layout_cls, flipped)


def _mm(qt, args, kwargs):
    x, weight = args[0], args[1]
    if not is_coded(weight) or not weight._params.transposed or isinstance(x, QuantizedTensor):
        return torch.mm(*dequantize_args(args), **dequantize_args(kwargs))
    return linear(x, coded_of(weight), None, weight._params.act_bits)


def _addmm(qt, args, kwargs):
    bias, x, weight = args[:3]
    if not is_coded(weight) or not weight._params.transposed or isinstance(x, QuantizedTensor) or kwargs:
        return torch.addmm(*dequantize_args(args), **dequantize_args(kwargs))
    return linear(x, coded_of(weight), bias, weight._params.act_bits)


def register(form: Format) -> None:
    """Make a format known to ComfyUI. Core calls `F.linear` with the weight; inside of `no_grad` that comes apart into
    a transposition and a product."""
    name = layout_name(form.name)
    layout = type(name, (CodedLayout,), {"form": form, "name": name})
    register_layout_class(name, layout)
    QUANT_ALGOS[algo_name(form.name)] = {
        "storage_t": torch.uint8, "parameters": {"weight_scale"}, "comfy_tensor_layout": name, "quantize_input": False,
    }  # fmt: skip
    aten = torch.ops.aten
    for op, handler in ((aten.linear, _linear), (aten.t, _transposed), (aten.mm, _mm), (aten.addmm, _addmm)):
        register_layout_op(op.default, layout)(handler)


for _form in FORMATS.values():
    register(_form)
