"""Files in ComfyUI's input folder, and motions in models/bodies."""

from __future__ import annotations

import os

import folder_paths

from .named_files import NamedFiles

BODIES = NamedFiles("bodies")


def input_files(suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files in the input folder and below it, with / between folders, sorted."""
    found, _ = folder_paths.recursive_search(folder_paths.get_input_directory())
    return sorted(name.replace("\\", "/") for name in found if name.lower().endswith(suffixes))


def input_path(name: str) -> str:
    """The path of a motion in models/bodies, of one of `input_files`, or of any other file named in full.

    raises: FileNotFoundError
    """
    if name in BODIES.names():
        return BODIES.path(name)
    path = os.path.join(folder_paths.get_input_directory(), os.path.expanduser(name.strip().strip('"')))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} is not there. Accepted: a file in models/bodies or in "
                                "ComfyUI's input folder, or a path in full.")
    return path
