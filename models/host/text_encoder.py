"""A text encoder of ComfyUI's UMT5 class at any size, as a CLIP.

Core's own loader assumes UMT5-XXL, 5.7 B parameters.
"""

from __future__ import annotations

import json

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
from safetensors import SafetensorError, safe_open

MARK = "interspatial_text_encoder"  # safetensors metadata: {"config": UMT5 config, "tokens": padded length}


def text_encoder_files() -> list[str]:
    """Names in ComfyUI's text_encoders folders whose metadata carries our mark. Broken files are left out."""
    return [
        name
        for name in folder_paths.get_filename_list("text_encoders")
        if _settings(_path(name), quiet=True) is not None
    ]


def load_text_encoder(name: str):
    """A CLIP of the file `name` in ComfyUI's text_encoders folders.

    raises: ValueError for a broken file, or one of another kind
    """
    settings = _settings(_path(name))
    if settings is None:
        raise ValueError(
            f"Load Tiny Text Encoder: {name} is a text encoder of another kind. Accepted: files made for this node, "
            "such as tiny_puppet_umt5.safetensors. Load other text encoders with core's Load CLIP."
        )
    state = comfy.utils.load_torch_file(_path(name), safe_load=True)
    target = comfy.supported_models_base.ClipTarget(
        comfy.text_encoders.wan.WanT5Tokenizer, comfy.text_encoders.wan.te()
    )
    target.params = {}
    return comfy.sd.CLIP(
        target,
        tokenizer_data={"spiece_model": state["spiece_model"], "umt5xxl_min_length": settings["tokens"]},
        parameters=comfy.utils.calculate_parameters(state),
        state_dict=[state],
        model_options={"umt5xxl_model_config": settings["config"]},
    )


def _path(name: str) -> str:
    return folder_paths.get_full_path_or_raise("text_encoders", name)


def _settings(path: str, quiet: bool = False) -> dict | None:
    """Our settings in a file's metadata, None where there are none."""
    if not path.endswith((".safetensors", ".sft")):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            mark = (file.metadata() or {}).get(MARK)
        return None if mark is None else json.loads(mark)
    except (SafetensorError, OSError, ValueError) as error:
        if quiet:
            return None
        raise ValueError(
            f"Load Tiny Text Encoder: {path} cannot be read ({error}). "
            "A complete safetensors file is accepted: copy it again."
        ) from error
