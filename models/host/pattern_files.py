"""Where sparse patterns are kept: the folder `sparse_patterns` of ComfyUI's models, and those that users configure."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

from ..families import bare
from .services import add_model_folder

FOLDER, SUFFIX = "sparse_patterns", ".safetensors"
NAME = re.compile(r"\w[\w .+-]*")  # no folders, no devices, and a name that every file system takes


def pattern_files() -> list[str]:
    """Names of the files there, in the order of ComfyUI's lists."""
    add_model_folder(FOLDER, {SUFFIX})
    return folder_paths.get_filename_list(FOLDER)


def pattern_path(name: str) -> str:
    """The path of one of `pattern_files`.

    raises: FileNotFoundError
    """
    add_model_folder(FOLDER, {SUFFIX})
    return folder_paths.get_full_path_or_raise(FOLDER, name)


def new_pattern_path(name: str) -> Path:
    """Where a pattern of this name is written: always under ComfyUI's own models folder.

    raises: ValueError for what is no plain file name
    """
    stem = name.strip().removesuffix(SUFFIX)
    if not NAME.fullmatch(stem) or stem.endswith((".", " ")):
        raise ValueError(
            f"{name!r} is no name for a file. Accepted: letters, digits, spaces, and _ . + - after the first one."
        )
    return Path(folder_paths.models_dir) / FOLDER / f"{stem}{SUFFIX}"


def class_name(model) -> str:
    """Class of the diffusion model in a MODEL, such as "WanModel"."""
    return type(bare(model.get_model_object("diffusion_model"))).__name__
