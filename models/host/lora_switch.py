"""A LoRA that is switched on for some evaluations of a loaded model, beside its weights.

The low-rank product is added to the output of each layer, by core's own adapters. No weight is patched, so switching
costs nothing, and the layers may be quantised or offloaded; the product itself is computed only while it is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.bypass import BypassForwardHook
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

DORA = 4  # place of the magnitudes in a LoRAAdapter's weights


def lora_files() -> list[str]:
    """Names in ComfyUI's folder of LoRAs."""
    return folder_paths.get_filename_list("loras")


def load_lora(name: str) -> dict[str, Tensor]:
    """The tensors of a file in ComfyUI's folder of LoRAs."""
    return comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name), safe_load=True)


class LoraSwitch:
    """raises: ValueError for a file that does not fit the model, or holds more than low-rank products"""

    def __init__(self, patcher, weights: dict, name: str) -> None:
        keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
        found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(weights)), keys, log_missing=False)
        if not found:
            raise ValueError(
                f"W2SD Reflection: none of the {len(weights)} tensors of {name} belongs to a layer of "
                f"{type(patcher.model).__name__}. A LoRA for this model is accepted."
            )
        strange = [key for key, adapter in found.items() if not _fits(key, adapter)]
        if strange:
            raise ValueError(
                f"W2SD Reflection: {name} changes {len(strange)} of {len(found)} weights in a way that cannot be added "
                f"beside them (the first is {strange[0]}). Accepted: low-rank products for whole layers. Merge the "
                "LoRA into two models and use the roles 'model'."
            )
        self._hooks = [
            BypassForwardHook(patcher.model.get_submodule(key.removesuffix(".weight")), adapter)
            for key, adapter in found.items()
        ]
        self._bare = [hook.module for hook in self._hooks if "forward" not in vars(hook.module)]

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """While it lasts, the model has the LoRA at this strength."""
        try:
            for hook in self._hooks:
                hook.adapter.multiplier = strength
                hook.inject()
            yield
        finally:
            for hook in reversed(self._hooks):
                hook.eject()
            for module in self._bare:
                vars(module).pop("forward", None)  # eject leaves the class's own method as an attribute


def _fits(key, adapter) -> bool:
    if not isinstance(key, str) or not key.endswith(".weight") or not isinstance(adapter, WeightAdapterBase):
        return False
    return not (isinstance(adapter, LoRAAdapter) and adapter.weights[DORA] is not None)
