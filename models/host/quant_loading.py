"""Loading a model file whose layers may be quantised, in this pack's formats and in ComfyUI's own, as a MODEL."""

from __future__ import annotations

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..quant.format import ACT_BITS
from ..quant.weights_file import MARKER, coded_layer, is_ours, read_marker
from .quant_layouts import as_weight
from .quant_ops import quantised_ops

SUFFIXES = ("", "_scale", "_table", "_mask", "_turns", "_order")


def load_quantised_model(path: str, act_bits: int = 0, disable_dynamic: bool = False):
    """MODEL of a safetensors file. Weights stay where the file is mapped until they are used.

    act_bits: of the activations of layers in this pack's formats; 0: as the file says
    disable_dynamic: asked for by ComfyUI when it wants a copy that it can patch itself
    raises: ValueError for a file that is damaged, foreign, or of no model that ComfyUI knows
    """
    tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    tensors = comfy.utils.state_dict_prefix_replace(
        tensors, {comfy.model_detection.unet_prefix_from_state_dict(tensors): ""}
    )
    tensors, metadata = comfy.utils.convert_old_quants(tensors, "", metadata=metadata)
    device = comfy.model_management.get_torch_device()
    shaped = with_weights_of(dict(tensors), torch.bfloat16, 0)
    config = comfy.model_detection.model_config_from_unet(shaped, "", metadata)
    if config is None:
        raise ValueError(f"{path} is of no video model that ComfyUI knows. A diffusion model file is accepted.")
    dtype = compute_dtype(config, device)
    options = {"custom_operations": quantised_ops(dtype, device), "dtype": dtype}
    model = comfy.sd.load_diffusion_model_state_dict(
        with_weights_of(tensors, dtype, act_bits), options, metadata, disable_dynamic
    )
    model.cached_patcher_init = (load_quantised_model, (path, act_bits))
    return model


def with_weights_of(tensors: dict[str, Tensor], dtype: torch.dtype, act_bits: int) -> dict[str, Tensor]:
    """`tensors` with the tensors of each layer in our formats put together as one weight, which has the shape of the
    original: ComfyUI tells models apart by shapes.
    """
    for key in [key for key in tensors if key.endswith(f".{MARKER}")]:
        layer = key.removesuffix(f".{MARKER}")
        conf = read_marker(layer, tensors[key])
        if not is_ours(conf):
            continue
        del tensors[key]
        parts = {suffix: tensors.pop(f"{layer}.weight{suffix}") for suffix in SUFFIXES
                 if f"{layer}.weight{suffix}" in tensors}  # fmt: skip
        coded = coded_layer(layer, conf, parts)
        tensors[f"{layer}.weight"] = as_weight(coded, dtype, act_bits or conf["act_bits"])
    return tensors


def compute_dtype(config, device: torch.device) -> torch.dtype:
    """What ComfyUI would compute a quantised model of this kind in."""
    manage = comfy.model_management
    cast = manage.unet_manual_cast(None, device, config.supported_inference_dtypes)
    return cast or config.supported_inference_dtypes[0]


def check_act_bits(act_bits: int) -> None:
    """raises: ValueError"""
    if act_bits not in (0, *ACT_BITS):
        raise ValueError(f"Activations of {act_bits} bits are not there. Accepted: 0 (as the file says), 8, 16.")
