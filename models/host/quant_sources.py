"""Where weights to quantise come from: a file, or a MODEL with its LoRAs; and the files that models lie in.

Source: comfy/model_patcher.py, comfy/lora.py and comfy/sd.py of ComfyUI 0.30.0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import comfy.lora
import comfy.model_detection
import comfy.model_management
import folder_paths
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ..quant.safetensors_stream import Entry, Reader, bytes_of
from .named_files import NamedFiles

MODELS = "diffusion_models"
FILES = NamedFiles(MODELS)
SUFFIX = FILES.suffix
SAMPLE = 1024  # values at the beginning, middle and end of a weight that tell it from others: three pages of a file
ROOM = 3 * 2**30  # bytes on the device for the encoding of one layer; 5120 x 13824 took 1.2 GB at most


class FileSource:
    """The diffusion model in a safetensors file."""

    def __init__(self, path: str | Path) -> None:
        """raises: ValueError for what is no such file; OSError"""
        if Path(path).suffix.lower() not in (SUFFIX, ".sft"):
            raise ValueError(f"{path} is no safetensors file. Accepted: .safetensors and .sft; load others with "
                             "ComfyUI's own loader and connect the model.")  # fmt: skip
        self._reader = Reader(path)
        self.path, self.name = Path(path), Path(path).name
        found = self._reader.entries
        prefix = comfy.model_detection.unet_prefix_from_state_dict(found)
        self._names = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)} or {
            name: name for name in found
        }
        self.entries: Mapping[str, Entry] = {name: found[at] for name, at in self._names.items()}
        self.metadata: Mapping[str, str] = self._reader.metadata
        about = self.path.stat()
        told = f"{about.st_size} {about.st_mtime_ns} {hashlib.sha256(self._reader.header).hexdigest()}"
        self.fingerprint = f"file {told}"

    def read(self, name: str) -> Tensor:
        return self._reader.read(self._names[name])


class ModelSource:
    """The diffusion model of a MODEL, with the LoRAs that are on it."""

    prefix = "diffusion_model."

    def __init__(self, model) -> None:
        """raises: ValueError for a model whose weights are quantised already"""
        self._model = model
        self._device = comfy.model_management.get_torch_device()
        self.path = model_file(model)
        self.name = f"the model {type(model.get_model_object('diffusion_model')).__name__}"
        modules = model.model.diffusion_model
        if coded := next((name for name, x in modules.named_parameters() if isinstance(x, QuantizedTensor)), None):
            raise ValueError(f"{self.name} cannot be quantised: it is quantised already ({coded}), and rounding twice "
                             "adds up. Load it from the file in 16 bits that it was made from.")  # fmt: skip
        with model.use_ejected():
            self._weights = dict(modules.state_dict())
        for backups in (model.backup, model.hook_backup):
            self._weights |= {key.removeprefix(self.prefix): _first(kept) for key, kept in backups.items()
                              if key.startswith(self.prefix)}  # fmt: skip
        self.entries: Mapping[str, Entry] = {n: Entry(x.dtype, tuple(x.shape)) for n, x in self._weights.items()}
        self.metadata: Mapping[str, str] = {} if self.path is None else Reader(self.path).metadata
        self.fingerprint = f"model {self._digest()}"

    def read(self, name: str) -> Tensor:
        """With LoRAs: in float32 on the device that adds them, so that nothing is lost to rounding."""
        weight = self._weights[name].detach()
        patches = self._model.patches.get(self.prefix + name)
        if not patches:
            return weight
        wide = weight.to(self._device, torch.float32, copy=True)
        return comfy.lora.calculate_weight(patches, wide, self.prefix + name)

    def left_out(self) -> list[str]:
        """What is on the model and cannot be in a file."""
        said = []
        if self._model.object_patches:
            said.append("settings of the model (" + ", ".join(sorted(self._model.object_patches)) + ")")
        options = self._model.model_options.get("transformer_options", {})
        if any(options.get(key) for key in ("patches", "patches_replace", "wrappers", "interspatial_patches")):
            said.append("methods that work while it samples")
        if self._model.injections or self._model.hook_patches:
            said.append("LoRAs that are applied beside the weights or by hooks")
        return said

    def _digest(self) -> str:
        found = hashlib.sha256()
        for name, weight in sorted(self._weights.items()):
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            for part in _samples(weight.detach()):
                found.update(bytes_of(part))
            for part in _told(self._model.patches.get(self.prefix + name, ())):
                found.update(part)
        return found.hexdigest()


def model_file(model) -> Path | None:
    """The safetensors file that a MODEL was loaded from, None where it is not known."""
    _, arguments, *_ = model.cached_patcher_init or (None, ())
    path = next((Path(x) for x in arguments if isinstance(x, str) and x.endswith(SUFFIX)), None)
    return path if path is not None and path.is_file() else None


def model_files() -> list[str]:
    """Names of diffusion models, in the order of ComfyUI's lists."""
    return folder_paths.get_filename_list(MODELS)


def model_path(name: str) -> str:
    """The path of one of `model_files`. raises: FileNotFoundError"""
    return folder_paths.get_full_path_or_raise(MODELS, name)


new_model_path = FILES.new_path


def encode_device() -> torch.device:
    """Where layers are encoded, with room made on it."""
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(ROOM, device)
    return device


def _first(kept) -> Tensor:
    """The weight of a backup: of patches, a record; of hooks, a tuple."""
    return kept.weight if hasattr(kept, "weight") else kept[0]


def _samples(weight: Tensor) -> Iterator[Tensor]:
    flat = weight.reshape(-1)
    for start in (0, (len(flat) - SAMPLE) // 2, len(flat) - SAMPLE):
        yield flat[max(0, start) : max(0, start) + SAMPLE]


def _told(part) -> Iterator[bytes]:
    """Bytes that a LoRA, or anything else among the patches of a weight, is told from others by."""
    if isinstance(part, Tensor):
        yield bytes_of(part)
    elif isinstance(part, (list, tuple)):
        for inner in part:
            yield from _told(inner)
    elif hasattr(part, "weights"):  # an adapter
        yield type(part).__name__.encode()
        yield from _told(part.weights)
    else:
        yield json.dumps(part, default=str).encode()
