"""Services of the host that are no hooks: interrupt, progress, folders, text on a node."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.utils
import folder_paths
import torch

from ..families import Family, family_of


def family_of_model(model) -> Family | None:
    """The family of a MODEL, None when it is not known."""
    return family_of(model.get_model_object("diffusion_model"))


def model_sampling(model):
    """The model_sampling of a MODEL with the patches that nodes have put on it."""
    return model.get_model_object("model_sampling")


def is_flow(sampling) -> bool:
    """True where sigma is the share of noise, as in the models of rectified flow."""
    return isinstance(sampling, comfy.model_sampling.CONST)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, with what torch holds there without using it. Asks the driver."""
    return comfy.model_management.get_free_memory(device)


def other_cache(model) -> str | None:
    """The name of a step cache of ComfyUI's own on a MODEL, None without one."""
    return cache_in(model.model_options.get("transformer_options", {}))


def cache_in(options: Mapping[str, Any]) -> str | None:
    """The same, of the transformer_options of a run."""
    holder = options.get("easycache")
    return None if holder is None else type(holder).__name__.removesuffix("Holder")


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt when the user has asked for it. Call between chunks of long work."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> Callable[[int], None]:
    """A progress bar on the running node: call the result with the number of units done so far."""
    bar = comfy.utils.ProgressBar(total)
    return lambda done: bar.update_absolute(done, total)


def add_model_folder(name: str, extensions: set[str]) -> None:
    """Let ComfyUI list files of `models/<name>`; folders that the user configured under that name are kept."""
    paths, known = folder_paths.folder_names_and_paths.get(name, ([], set()))
    default = os.path.join(folder_paths.models_dir, name)
    paths = list(paths) if default in paths else [*paths, default]
    folder_paths.folder_names_and_paths[name] = (paths, set(known) | extensions)


def show_text(text: str, node_id: str | None) -> None:
    """Show text on a node of the running workflow. Silent where no server runs or no node is named."""
    server = sys.modules.get("server")   # never imported from here: it pulls in the web stack
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if node_id is None or instance is None:
        return
    try:
        instance.send_progress_text(text, node_id)
    except Exception as error:   # a closed socket must not end a finished render
        logging.getLogger("interspatial").debug("text for node %s was not sent: %s", node_id, error)
