"""A MODEL whose coarsely quantised layers add LoRAs beside their weight; everything else stays ComfyUI's.

At few bits the change that a LoRA makes is smaller than a rounding step, and requantising swallows most of it. Such a
layer keeps its weight and adds the low-rank product to its output. The patches stay in the list where ComfyUI keeps
them, so cloning, merging, caching and unloading see a LoRA like any other; what differs is what happens to them when
weights are loaded. No `forward` is covered: core's bypass LoRAs, block visits and torch.compile go on top. LoRAs of
hooks, which come and go between prompts, are beside every quantised layer, since core cannot write into such a weight.

Source: comfy/model_patcher.py, comfy/lora.py and comfy/weight_adapter of ComfyUI 0.30.0.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import LazyCastingParamPiece
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.loha import LoHaAdapter
from comfy.weight_adapter.lokr import LoKrAdapter
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ..quant.format import FORMATS
from ..quant.weights_file import MARKER
from .quant_layouts import is_coded

# Kinds of adapter that are sums, with the places of `weights` that must be empty for it: convolutions, DoRA, reshaping.
SUMS = {LoRAAdapter: (3, 4, 5), LoHaAdapter: (5, 6, 7), LoKrAdapter: (7, 8)}


class LowRank:
    """One LoRA beside one layer: y += strength * up(down(x)). Its tensors are copies; the patch's own stay put.

    patch: (strength, adapter, strength of the weight, slice, function) as in ModelPatcher.patches
    """

    def __init__(self, patch: tuple, device: torch.device, dtype: torch.dtype) -> None:
        self.patch, self.device = patch, device
        self._adapter = _on(patch, device, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(x.nbytes for x in self._adapter.weights if isinstance(x, Tensor))

    def leave_device(self) -> None:
        """Give up the copies; a call from now on casts them anew."""
        self.device, self._adapter = None, self.patch[1]

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """x: [..., K], out: [..., N] is written to -> out"""
        adapter = self._adapter if self.device == x.device else _on(self.patch, x.device, x.dtype)
        axis, start, size = self.patch[3] or (None, 0, 0)
        part = out.narrow(-1, start, size) if axis == 0 else out
        part += adapter.h(x.narrow(-1, start, size) if axis == 1 else x, part)
        return out


class LorasBeside:
    """What a ModelPatcher of ComfyUI is given for such a model, in front of its own class."""

    def load(self, device_to=None, *args, **kwargs):
        with self._without_beside() as beside:
            loaded = super().load(device_to, *args, **kwargs)
        take_away(self.model)
        for name, patches in beside.items():
            layer = comfy.utils.get_attr(self.model, name)
            layer.beside = _low_ranks(patches, layer, device_to)
            self.model.model_loaded_weight_memory += sum(lora.nbytes for lora in layer.beside)
        return loaded

    def patch_hooks(self, hooks):
        super().patch_hooks(hooks)
        take_away(self.model, "hooked")
        for key, patches in super().get_combined_hook_patches(hooks).items():
            if (layer := self._quantised(key)) is None:
                continue
            if not all(_is_sum(patch, tuple(layer.weight.shape)) for patch in patches):
                raise ValueError(f"A hook changes {key} in a way that cannot be added beside it, and ComfyUI writes no "
                                 "hooks into quantised weights. Accepted: low-rank products (LoRA, LoHa, LoKr). Load "
                                 "this LoRA with an ordinary loader.")  # fmt: skip
            layer.hooked = _low_ranks(patches, layer, self.load_device)

    def get_combined_hook_patches(self, hooks):
        """Those that ComfyUI writes into weights: of layers that are not quantised."""
        every = super().get_combined_hook_patches(hooks)
        return {key: patches for key, patches in every.items() if self._quantised(key) is None}

    def unpatch_hooks(self, whitelist_keys_set=None):
        take_away(self.model, "hooked")
        return super().unpatch_hooks(whitelist_keys_set)

    def model_state_dict(self, filter_prefix=None):
        """Without what lies beside the codes of a quantised weight: ComfyUI looks for a weight behind each name."""
        tensors = super().model_state_dict(filter_prefix)
        for name, layer in self._quantised_layers().items():
            for key in {*layer.weight.state_dict(f"{name}.weight"), f"{name}.{MARKER}"} - {f"{name}.weight"}:
                tensors.pop(key, None)
        return tensors

    def partially_unload(self, *args, **kwargs):
        with self._without_beside():
            return super().partially_unload(*args, **kwargs)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            take_away(self.model)
        return super().unpatch_model(device_to, unpatch_weights)

    def restore_loaded_backups(self):
        """Of ModelPatcherDynamic alone: what it calls to free what it has put on the device whole."""
        for lora in (lora for module in self.model.modules() for lora in getattr(module, "beside", ())):
            lora.leave_device()
        return super().restore_loaded_backups()

    def clone(self, *args, **kwargs):
        # ComfyUI makes a plain ModelPatcher of a dynamic one where it needs weights that it can patch itself.
        return quantised_patcher(super().clone(*args, **kwargs))

    def model_state_dict_for_saving(self, model=None, prefix=""):
        layers = self._quantised_layers()
        streamed = {name for name, layer in layers.items() if not getattr(layer, "comfy_patched_weights", False)}
        with _as_patched(layers[name] for name in streamed):
            tensors = super().model_state_dict_for_saving(model, prefix)
        beside = self.beside()
        if beside:
            logging.warning(
                "Saving rounds a LoRA into %d coarsely quantised layers, where it was beside the weights; that loses "
                "part of it. Better: merge the LoRA into the unquantised model, and quantise that.", len(beside)
            )  # fmt: skip
        for name in beside.keys() | {name for name in streamed if f"{name}.weight" in self.patches}:
            merged = _Merged(self, name)
            for key, tensor in layers[name].weight.state_dict(f"{name}.weight").items():
                tensors[key.removeprefix(prefix)] = _Piece(merged, key, tensor)
        return tensors

    def beside(self) -> dict[str, list[tuple]]:
        """The patches that are added beside their layer, by its name; those of `patches` that follow the last one that
        is not of this kind, since patches apply in order.
        """
        found = {}
        for key, patches in self.patches.items():
            name, layer = key.removesuffix(".weight"), self._quantised(key)
            if layer is None or not is_coarse(layer):
                continue
            first = len(patches)
            while first and _is_sum(patches[first - 1], tuple(layer.weight.shape)):
                first -= 1
            if first < len(patches):
                found[name] = patches[first:]
        return found

    def _quantised_layers(self) -> dict[str, torch.nn.Module]:
        modules = self.model.named_modules()
        return {name: x for name, x in modules if isinstance(getattr(x, "weight", None), QuantizedTensor)}

    def _quantised(self, key: str) -> torch.nn.Module | None:
        """The layer of `quantised_ops` that this is the quantised weight of, or None."""
        layer = comfy.utils.get_attr(self.model, key.removesuffix(".weight")) if key.endswith(".weight") else None
        return layer if hasattr(layer, "hooked") and isinstance(layer.weight, QuantizedTensor) else None

    @contextmanager
    def _without_beside(self) -> Iterator[dict[str, list[tuple]]]:
        """Within, `patches` are only those that go into weights. Gives the others."""
        every, beside = self.patches, self.beside()
        rest = {key: patches[: len(patches) - len(beside.get(key.removesuffix(".weight"), ()))]
                for key, patches in every.items()}  # fmt: skip
        self.patches = {key: patches for key, patches in rest.items() if patches}
        try:
            yield beside
        finally:
            self.patches = every


def quantised_patcher(patcher):
    """The same MODEL, of a class that adds LoRAs beside coarse layers of `quantised_ops`."""
    if not isinstance(patcher, LorasBeside):
        patcher.__class__ = _class(type(patcher))
    return patcher


def take_away(model: torch.nn.Module, kind: str = "beside") -> None:
    """Leave no LoRA beside any layer. kind: "beside", or "hooked" for those of hooks"""
    for module in model.modules():
        if getattr(module, kind, ()):
            setattr(module, kind, ())


def _low_ranks(patches: list[tuple], layer: torch.nn.Module, device: torch.device) -> tuple[LowRank, ...]:
    return tuple(LowRank(patch, device, layer.weight.dtype) for patch in patches)


def is_coarse(layer: torch.nn.Module) -> bool:
    """True for a layer in so few bits that a LoRA belongs beside it."""
    weight = layer.weight
    return is_coded(weight) and weight._params.bits <= FORMATS[weight.layout_cls.form.name].side


@functools.cache
def _class(base: type) -> type:
    return type(f"Quantised{base.__name__}", (LorasBeside, base), {})


@contextmanager
def _as_patched(layers: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Within, ComfyUI takes the weights of these layers for patched. Else, when it saves them, it makes parameters with
    gradients of their codes, which whole numbers cannot have, and fails.
    """
    before = [(layer, vars(layer).get("comfy_patched_weights")) for layer in layers]
    for layer, _ in before:
        layer.comfy_patched_weights = True
    try:
        yield
    finally:
        for layer, patched in before:
            if patched is None:
                del layer.comfy_patched_weights
            else:
                layer.comfy_patched_weights = patched


class _Piece(LazyCastingParamPiece):
    """One tensor of a layer, which a file asks for when it is written."""

    def __new__(cls, merged, key: str, tensor: Tensor):
        return torch.nn.Parameter.__new__(cls, tensor, requires_grad=False)


class _Merged:
    """The tensors of a layer with all patches rounded into its weight; made when a file asks for the first of them."""

    def __init__(self, patcher, name: str) -> None:
        self._patcher, self._key, self._tensors = patcher, f"{name}.weight", None

    def state_dict_tensor(self, key: str) -> Tensor:
        if self._tensors is None:
            patcher, backup = self._patcher, self._patcher.backup.get(self._key)
            weight = backup.weight if backup else comfy.utils.get_attr(patcher.model, self._key)
            device = patcher.load_device
            whole = comfy.model_management.cast_to_device(weight, device, torch.float32, copy=True).dequantize()
            whole = comfy.lora.calculate_weight(patcher.patches[self._key], whole, self._key)
            seed = comfy.utils.string_to_seed(self._key)
            merged = weight.to(device).requantize_from_float(whole, scale="recalculate", stochastic_rounding=seed)
            self._tensors = {name: x.to("cpu") for name, x in merged.state_dict(self._key).items()}
        return self._tensors[key]


def _is_sum(patch: tuple, shape: tuple[int, int]) -> bool:
    """True for a patch that adds a product to the output of a layer of this shape."""
    _, adapter, strength_model, offset, function = patch
    empty = SUMS.get(type(adapter))
    if empty is None or strength_model != 1.0 or function is not None:
        return False
    if any(adapter.weights[i] is not None for i in empty):
        return False
    axis, _, size = offset or (None, 0, 0)
    rows, columns = (size if axis == 0 else shape[0]), (size if axis == 1 else shape[1])
    try:
        meta = torch.device("meta")
        delta = _on(patch, meta, torch.float32).h(torch.empty(1, columns, device=meta), None)
    except RuntimeError:  # sizes that do not fit: core says so, and goes on without it
        return False
    return tuple(delta.shape) == (1, rows)


def _on(patch: tuple, device: torch.device, dtype: torch.dtype) -> WeightAdapterBase:
    """The adapter of a patch with its strength and copies of its tensors, ready for `h`."""
    adapter = copy.copy(patch[1])
    adapter.multiplier, adapter.is_conv, adapter.kw_dict = patch[0], False, {}
    # LoRAs of other trainers write the matrices of linear layers as convolutions of one pixel
    adapter.weights = tuple(
        x.flatten(1).to(device, dtype) if isinstance(x, Tensor) and x.ndim > 1 else x for x in patch[1].weights
    )
    return adapter
