"""Where sparse patterns are kept: the folder `sparse_patterns` of ComfyUI's models, and those that users configure."""

from __future__ import annotations

from ..families import bare
from .named_files import NamedFiles

FILES = NamedFiles("sparse_patterns")
pattern_files, pattern_path, new_pattern_path = FILES.names, FILES.path, FILES.new_path


def class_name(model) -> str:
    """Class of the diffusion model in a MODEL, such as "WanModel"."""
    return type(bare(model.get_model_object("diffusion_model"))).__name__
