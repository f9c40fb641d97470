"""Layers of a loaded model that compute with quantised weights for a while; the model's own weights are not touched.

So that one layer after the other can be tried, or a format looked at, without writing and loading a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..quant.format import Coded
from ..quant.layers import quantised_layers
from ..quant.linear import linear
from .layers import layer_weights


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a diffusion model that formats are for, by name, in the order of blocks."""
    found = {name: module for name, module in model.named_modules() if _is_linear(module)}
    shapes = ((f"{name}.weight", tuple(module.weight.shape)) for name, module in found.items())
    return {name: found[name] for name in quantised_layers(shapes)}


def float_weight(layer: nn.Module, device: torch.device) -> Tensor:
    """[N, K] float32 on `device`: the weight that the layer computes with now, LoRAs and all."""
    with layer_weights(layer, torch.empty(0, dtype=torch.float32, device=device)) as (weight, _):
        if isinstance(weight, QuantizedTensor):
            weight = weight.dequantize()
        return weight.float().clone()


@contextmanager
def coded_layers(model: nn.Module, weights: Mapping[str, Coded], act_bits: int) -> Iterator[None]:
    """While it lasts, these layers of a diffusion model compute with these weights. act_bits: 8 or 16"""
    covered = []
    try:
        for name, coded in weights.items():
            layer = model.get_submodule(name)
            covered.append((layer, vars(layer).get("forward")))
            layer.forward = _forward(layer, coded, act_bits)
        yield
    finally:
        for layer, before in reversed(covered):
            if before is None:
                del layer.forward
            else:
                layer.forward = before


def _forward(layer: nn.Module, coded: Coded, act_bits: int):
    def forward(x: Tensor) -> Tensor:
        bias = None if layer.bias is None else comfy.ops.cast_to_input(layer.bias, x)
        return linear(x, coded, bias, act_bits)

    return forward


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, comfy.ops.CastWeightBiasOp) and hasattr(module, "in_features") and hasattr(
        module, "out_features"
    )
