"""Interspatial adapters as files: the folder `interspatial_adapters` of ComfyUI's models, loaded beside a MODEL.

safetensors with the keys of `InterspatialAdapter.state_dict()` and in the metadata, under "config", the settings of
`AdapterConfig.told()` as JSON. ComfyUI loads, casts and offloads the weights with those of the model they are put on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from safetensors import SafetensorError, safe_open

from ..nets.interspatial_adapter import AdapterConfig, InterspatialAdapter
from .named_files import NamedFiles

FILES = NamedFiles("interspatial_adapters")
KEY = "interspatial_adapters"  # of the additional models of a MODEL
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ACCEPTED = (
    "Accepted: safetensors with all weights of one interspatial adapter, and its settings as JSON under config in the "
    "metadata, as the pack's own training writes them. Choose such a file."
)
SHOWN = 3  # keys named in an error


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """patcher: holds the network; clones share it    dtype: of the adapter's arithmetic; weights are cast to it"""

    config: AdapterConfig
    patcher: comfy.model_patcher.ModelPatcher
    dtype: torch.dtype

    @property
    def network(self) -> InterspatialAdapter:
        return self.patcher.model


def load_adapter(path: str | Path) -> LoadedAdapter:
    """raises: ValueError that names the file and says what is wrong with it"""
    try:
        with safe_open(path, framework="pt") as file:
            config = _config(file.metadata() or {})
            dtype = _checked(file, config)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"The adapter file {path} cannot be used: {error}. {ACCEPTED}") from error
    return adapter_of(config, weights, dtype)


def adapter_of(config: AdapterConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> LoadedAdapter:
    """weights: all of them, of one dtype"""
    offload = comfy.model_management.unet_offload_device()
    network = InterspatialAdapter(config, comfy.ops.manual_cast, offload, dtype).requires_grad_(False).train(False)
    patcher = comfy.model_patcher.CoreModelPatcher(
        network, load_device=comfy.model_management.get_torch_device(), offload_device=offload
    )
    network.load_state_dict(weights, assign=patcher.is_dynamic())
    cast = comfy.model_management.unet_manual_cast(dtype, patcher.load_device)   # fp16 is slow and coarse on a CPU
    return LoadedAdapter(config, patcher, cast or dtype)


def beside(model, adapter: LoadedAdapter):
    """A clone of a MODEL that has the adapter loaded and offloaded with it."""
    model = model.clone()
    others = model.get_additional_models_with_key(KEY)
    if not any(other.model is adapter.network for other in others):
        model.set_additional_models(KEY, [*others, adapter.patcher])
    return model


def as_the_model_sees(model, latent: torch.Tensor) -> torch.Tensor:
    """A latent as the VAE gives it, scaled as the diffusion model gets it. latent: [B, C, ...]"""
    return model.model.process_latent_in(latent)


def _config(metadata: dict[str, str]) -> AdapterConfig:
    try:
        values = json.loads(metadata["config"])
    except (KeyError, ValueError):
        raise ValueError("it holds no interspatial adapter: config is missing in its metadata") from None
    if not isinstance(values, dict):
        raise ValueError("it holds no interspatial adapter: config is not a list of named settings")
    return AdapterConfig.of(values)


def _checked(file, config: AdapterConfig) -> torch.dtype:
    """The dtype of the weights. raises: ValueError for weights that are not those of the settings"""
    wanted = {name: list(x.shape) for name, x in InterspatialAdapter(config, device="meta").state_dict().items()}
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    for what, names in (("lacks", wanted.keys() - found.keys()), ("holds more than", found.keys() - wanted.keys())):
        if names:
            raise ValueError(f"it {what} the weights of an adapter with its settings: {_some(names)}")
    for name, shape in wanted.items():
        if found[name].get_shape() != shape:
            raise ValueError(f"{name} is of shape {found[name].get_shape()}, and its settings ask for {shape}")
    dtypes = {x.get_dtype() for x in found.values()}
    if len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ValueError(f"its weights are {', '.join(sorted(dtypes))}, and must all be one of {', '.join(DTYPES)}")
    return DTYPES[dtypes.pop()]


def _some(names: set[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more
