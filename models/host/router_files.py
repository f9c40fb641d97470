"""Where router files are kept: the folder `dynamic_routers` of ComfyUI's models, and those that users configure."""

from __future__ import annotations

import folder_paths

from .services import add_model_folder

FOLDER = "dynamic_routers"
SUFFIXES = {".safetensors", ".pt", ".pth"}  # the last two only so that choosing one says how to convert it


def router_files() -> list[str]:
    """Names of the files there, in the order of ComfyUI's lists."""
    add_model_folder(FOLDER, SUFFIXES)
    return folder_paths.get_filename_list(FOLDER)


def router_path(name: str) -> str:
    """The path of one of `router_files`.

    raises: FileNotFoundError
    """
    add_model_folder(FOLDER, SUFFIXES)
    return folder_paths.get_full_path_or_raise(FOLDER, name)
