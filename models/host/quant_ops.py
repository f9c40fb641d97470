"""The layers of a model that is loaded with quantised weights: ComfyUI's mixed-precision ones, which also take ours."""

from __future__ import annotations

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor

from ..quant.weights_file import read_marker
from .quant_layouts import algo_name, is_coded, marker_of

WHOLE = ("int8_tensorwise", "float8_e4m3fn", "float8_e5m2")  # formats of core with one number for each weight


def quantised_ops(compute_dtype: torch.dtype, device: torch.device) -> type:
    """Operations for a model, `compute_dtype` for whatever is not quantised. Formats of core that the device has no
    arithmetic for are computed in that dtype.
    """
    manage = comfy.model_management
    formats = {"nvfp4": manage.supports_nvfp4_compute, "mxfp8": manage.supports_mxfp8_compute,
               "float8_e4m3fn": manage.supports_fp8_compute, "float8_e5m2": manage.supports_fp8_compute}  # fmt: skip
    disabled = {name for name, supported in formats.items() if not supported(device)}
    base = comfy.ops.mixed_precision_ops({"mixed_ops": True}, compute_dtype, disabled=disabled)

    class QuantisedOps(base):
        class Linear(base.Linear):
            beside = hooked = ()  # LoRAs that are added to the output instead of the weight: quant_patcher.py

            def forward(self, input, *args, **kwargs):
                out = super().forward(input, *args, **kwargs)
                for lora in (*self.beside, *self.hooked):
                    out = lora(input, out)
                return out

            def _load_from_state_dict(self, state_dict, prefix, *others):
                weight, (missing, _, errors) = state_dict.get(f"{prefix}weight"), others[-3:]
                if weight is not None and _is_whole(prefix, state_dict) and tuple(weight.shape) != self._orig_shape:
                    errors.append(f"{prefix}weight is {list(weight.shape)}, and {list(self._orig_shape)} belongs there")
                    return
                if not is_coded(weight):
                    super()._load_from_state_dict(state_dict, prefix, *others)
                    return
                state_dict.pop(f"{prefix}weight")
                self.quant_format = algo_name(weight.layout_cls.form.name)
                self.layout_type = weight._layout_cls
                weight = weight.to(device=self.factory_kwargs["device"], dtype=self.factory_kwargs["dtype"])
                self.weight = torch.nn.Parameter(weight, requires_grad=False)
                torch.nn.Module._load_from_state_dict(self, state_dict, prefix, *others)
                if f"{prefix}weight" in missing:
                    missing.remove(f"{prefix}weight")

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                if not is_coded(getattr(self, "weight", None)):
                    return super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
                found = destination if destination is not None else {}
                if self.bias is not None:
                    found[f"{prefix}bias"] = self.bias
                found.update(self.weight.state_dict(f"{prefix}weight"))
                found[f"{prefix}comfy_quant"] = marker_of(self.weight)
                return found

    return QuantisedOps


def _is_whole(prefix: str, state_dict: dict) -> bool:
    """True when the weight of a layer has the shape of the layer: in all formats but those of core that pack or pad."""
    marker = state_dict.get(f"{prefix}comfy_quant")
    return marker is None or read_marker(prefix.rstrip("."), marker).get("format") in WHOLE


def why_full_precision(layer) -> str | None:
    """Why a quantised layer multiplies in full precision, or None."""
    if not isinstance(layer.weight, QuantizedTensor):
        return None
    if getattr(layer, "_full_precision_mm", False):
        return "this device has no arithmetic for the format"
    return "a LoRA is applied while weights stream in" if layer.weight_function else None
