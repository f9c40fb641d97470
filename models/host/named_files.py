"""Files of this pack in a folder of ComfyUI's models: listed, found, and named when they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from .services import add_model_folder

NAME = re.compile(r"\w[\w .+-]*")  # no folders, no devices, and a name that every file system takes


@dataclass(frozen=True)
class NamedFiles:
    """folder: under ComfyUI's models, beside those that users configured under that name"""

    folder: str
    suffix: str = ".safetensors"

    def names(self) -> list[str]:
        """Names of the files there, in the order of ComfyUI's lists."""
        add_model_folder(self.folder, {self.suffix})
        return folder_paths.get_filename_list(self.folder)

    def path(self, name: str) -> str:
        """The path of one of `names`.

        raises: FileNotFoundError
        """
        add_model_folder(self.folder, {self.suffix})
        return folder_paths.get_full_path_or_raise(self.folder, name)

    def new_path(self, name: str) -> Path:
        """Where a file of this name is written: always under ComfyUI's own models folder.

        raises: ValueError for what is no plain file name
        """
        stem = name.strip().removesuffix(self.suffix)
        if not NAME.fullmatch(stem) or stem.endswith((".", " ")):
            raise ValueError(
                f"{name!r} is no name for a file. Accepted: letters, digits, spaces, and _ . + - after the first one."
            )
        return Path(folder_paths.models_dir) / self.folder / f"{stem}{self.suffix}"
