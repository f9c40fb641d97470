"""Weights of a model's layers as ComfyUI would use them now: cast, streamed in, with LoRAs that are applied on the fly.

Source: comfy/ops.py and comfy/ldm/wan/model.py in ComfyUI 0.30.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.lora
import comfy.ops
from comfy.ldm.wan.model import sinusoidal_embedding_1d
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def layer_weights(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias in the dtype and on the device of `like`, for use inside only."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def why_not_sliced(layer: nn.Module) -> str | None:
    """Why parts of a layer's weight cannot stand for parts of the layer, or None."""
    weight = layer.weight
    if type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point() or weight.element_size() < 2:
        return "the model's weights are quantised, and a part of such a weight is not one of its own"
    if not isinstance(layer, comfy.ops.CastWeightBiasOp) or not isinstance(layer, (nn.Linear, nn.RMSNorm)):
        return "the model's layers are of a kind that is not ComfyUI's own"
    if "forward" in vars(layer):
        return "another patch replaces single layers of the model"
    return None


def wan_time_embedding(model: nn.Module, timesteps: Tensor) -> Tensor:
    """What Wan's blocks know of the time, in float32. timesteps: [S], 0 to 1000 -> [S, C]"""
    first, _, second = model.time_embedding
    e = sinusoidal_embedding_1d(model.freq_dim, timesteps)
    with layer_weights(first, e) as (weight, bias):
        e = F.silu(F.linear(e, weight, bias))
    with layer_weights(second, e) as (weight, bias):
        return F.linear(e, weight, bias)


def with_weights(model, tensors: dict[str, Tensor]):
    """A clone of MODEL with changes of its weights, in any of the forms that LoRA files have, through ComfyUI's loader.

    raises: ValueError when some of them belong to no weight of the model
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(tensors, known, log_missing=False)
    clone = model.clone()
    done = clone.add_patches(patches, 1.0)
    stems = {name for name, key in known.items() if (key if isinstance(key, str) else key[0]) in set(done)}
    lost = [name for name in tensors if not any(name.startswith(f"{stem}.") for stem in _stems(name) & stems)]
    if lost:
        raise ValueError(f"{len(lost)} of its weights belong to no layer of the model, the first is {lost[0]}")
    return clone


def _stems(name: str) -> set[str]:
    """All beginnings of a dotted name."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


