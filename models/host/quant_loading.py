"""Loading a model file whose layers may be quantised, in this pack's formats and in ComfyUI's own, as a MODEL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor

from ..quant.format import ACT_BITS, FORMATS
from ..quant.safetensors_stream import Reader
from ..quant.weights_file import CORE_INT8, FULL_PRECISION, MARKER, OURS, as_marker, coded_layer, is_ours, read_marker
from . import interspatial_model
from .quant_layouts import as_weight, coded_of, is_coded
from .quant_ops import quantised_ops, why_full_precision
from .quant_patcher import quantised_patcher

SUFFIXES = ("", "_scale", "_table", "_mask", "_turns", "_order")
ANEW = "Download or write the file anew."
ACCEPTED = "Accepted: safetensors files of diffusion models, such as Quantize Model writes."


def load_quantised_model(path: str, act_bits: int = 0, disable_dynamic: bool = False):
    """MODEL of a safetensors file. Weights stay where the file is mapped until they are used.

    act_bits: of the activations of layers in this pack's formats and in ComfyUI's int8; 0: as the file says
    disable_dynamic: asked for by ComfyUI when it wants a copy that it can patch itself
    raises: ValueError for a file that is damaged, foreign, or of no model that ComfyUI knows
    """
    check_act_bits(act_bits)
    tensors, metadata = _read(path)
    marked = any(name.endswith(f".{MARKER}") for name in tensors)
    try:
        for layer in [name.removesuffix(f".{MARKER}") for name in tensors if name.endswith(f".{MARKER}")]:
            _check_core(layer, tensors, act_bits)
        shaped = with_weights_of(dict(tensors), torch.bfloat16, 0)
        _check_weights(shaped)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    config = _detected(path, shaped, metadata)
    options = {}
    if marked:
        device = comfy.model_management.get_torch_device()
        dtype = compute_dtype(config, device)
        options = {"custom_operations": quantised_ops(dtype, device), "dtype": dtype}
        tensors = with_weights_of(tensors, dtype, act_bits)
    model = _loaded(path, tensors, config, options, metadata, disable_dynamic)
    model.cached_patcher_init = (load_quantised_model, (path, act_bits))
    return quantised_patcher(model) if marked else model


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


@dataclass(frozen=True)
class Kept:
    """Layers of a loaded model that are kept in one way.

    ours: in a format of this pack    layers, weights: how many    nbytes: with scales and tables
    """

    name: str
    ours: bool
    layers: int = 0
    weights: int = 0
    nbytes: int = 0


def kept_as(model) -> list[Kept]:
    """How the linear layers of a MODEL are kept, the quantised ones; the most frequent first."""
    found: dict[str, Kept] = {}
    for layer in model.model.diffusion_model.modules():
        weight = vars(layer).get("_parameters", {}).get("weight")
        if not isinstance(weight, QuantizedTensor):
            continue
        ours = is_coded(weight)
        if ours:
            coded = coded_of(weight)
            name = f"{FORMATS[coded.format].label} {coded.bits}-bit"
        else:
            reason = why_full_precision(layer)
            name = f"{getattr(layer, 'quant_format', weight._layout_cls)}{f' ({reason})' if reason else ''}"
        before = found.get(name, Kept(name, ours))
        size = sum(x.nbytes for x in weight.state_dict().values())
        found[name] = Kept(name, ours, before.layers + 1, before.weights + weight.numel(), before.nbytes + size)
    return sorted(found.values(), key=lambda kept: -kept.layers)


def _read(path: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors by names without prefix and with ComfyUI's markers, and metadata. raises: ValueError"""
    if Path(path).suffix.lower() not in (".safetensors", ".sft"):
        raise ValueError(f"{path} cannot be loaded: it is no safetensors file. {ACCEPTED}")
    try:
        Reader(path)  # a damaged file is told from a foreign one before ComfyUI maps it
    except OSError as error:
        raise ValueError(f"{path} cannot be loaded: {error}. {ACCEPTED}") from error
    tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    tensors = comfy.utils.state_dict_prefix_replace(tensors, {prefix: ""}, filter_keys=True) or tensors
    try:
        return comfy.utils.convert_old_quants(tensors, "", metadata=metadata)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be loaded: its metadata on quantised layers cannot be read "
                         f"({type(error).__name__}: {error}). {ANEW}") from error  # fmt: skip


def _check_core(layer: str, tensors: dict[str, Tensor], act_bits: int) -> None:
    """A layer in one of ComfyUI's formats, with activations as they are asked for. raises: ValueError"""
    conf = read_marker(layer, tensors[f"{layer}.{MARKER}"])
    if is_ours(conf):
        return
    name = conf.get("format")
    if name not in QUANT_ALGOS or str(name).startswith(OURS):
        known = ", ".join([*(OURS + x for x in FORMATS), *(x for x in QUANT_ALGOS if not x.startswith(OURS))])
        raise ValueError(f"layer {layer} is kept as {name!r}. Accepted: {known}. Update ComfyUI or the pack.")
    weight, scale = tensors.get(f"{layer}.weight"), tensors.get(f"{layer}.weight_scale")
    if weight is None or scale is None:
        raise ValueError(f"layer {layer} of format {name} lacks its {'weight' if weight is None else 'scale'}. {ANEW}")
    if name == CORE_INT8 and (weight.dtype != torch.int8 or scale.numel() not in (1, weight.shape[0])):
        raise ValueError(f"layer {layer} of format {name} has a weight of {weight.dtype} {list(weight.shape)} and "
                         f"scales {list(scale.shape)}; int8 and one scale a row belong there. {ANEW}")  # fmt: skip
    if act_bits and name == CORE_INT8:
        conf = {key: value for key, value in conf.items() if key != FULL_PRECISION}
        tensors[f"{layer}.{MARKER}"] = as_marker(conf | ({FULL_PRECISION: True} if act_bits == 16 else {}))


def _check_weights(tensors: dict[str, Tensor]) -> None:
    """raises: ValueError for whole numbers that nothing says the meaning of"""
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if name != layer and tensor.dtype in (torch.int8, torch.uint8) and f"{layer}.{MARKER}" not in tensors:
            raise ValueError(f"the weight of layer {layer} is of {tensor.dtype}, and the marker that says what it "
                             f"means is missing. {ANEW}")  # fmt: skip


def _detected(path: str, tensors: dict[str, Tensor], metadata: dict):
    """ComfyUI's configuration of the model, or this pack's of its own. raises: ValueError"""
    reason = "ComfyUI knows no model with these tensors"
    if interspatial_model.is_ours(metadata):
        try:
            return interspatial_model.config_of(metadata)
        except ValueError as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from error
    try:
        config = comfy.model_detection.model_config_from_unet(tensors, "", metadata)
    except Exception as error:  # tensors of other files make its detection stumble in many ways
        config, reason = None, f"{reason} ({type(error).__name__}: {error})"
    if config is None:
        hint = "It is a LoRA; load it with a LoRA loader. " if any("lora_" in name for name in tensors) else ""
        raise ValueError(f"{path} cannot be loaded: {reason}. {hint}{ACCEPTED}")
    return config


def _loaded(path: str, tensors: dict[str, Tensor], config, options: dict, metadata: dict, disable_dynamic: bool):
    try:
        if isinstance(config, interspatial_model.InterspatialConfig):
            model = interspatial_model.patcher_of(tensors, config, options, disable_dynamic)
        else:
            model = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata, disable_dynamic)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be loaded: its tensors do not fit the model that it seems to be: "
                         f"{error}. {ANEW}") from error  # fmt: skip
    if model is None:
        raise ValueError(f"{path} cannot be loaded: ComfyUI knows no model with these tensors. {ACCEPTED}")
    for name, layer in model.model.diffusion_model.named_modules():
        if hasattr(layer, "in_features") and getattr(layer, "weight", 0) is None:
            raise ValueError(f"{path} cannot be loaded: the weight of layer {name} is missing. {ANEW}")
    return model
