"""The tiny checkpoints that ship with the pack, made visible to ComfyUI's own loaders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

# Names under checkpoints/ are ComfyUI's folder names; the last six are of this pack.
FOLDERS = ("diffusion_models", "vae", "text_encoders", "loras", "sparse_patterns", "dynamic_routers",
           "activation_stats", "quant_plans", "interspatial_adapters", "bodies")  # fmt: skip


def register_folders(root: Path) -> list[Path]:
    """Add each `root/<folder>` that exists to ComfyUI's search paths, after the user's own.

    A file of the same name in the user's folders wins. Calling it again adds nothing.
    returns: the folders added, in the order of FOLDERS
    """
    added = [root / name for name in FOLDERS if (root / name).is_dir()]
    for folder in added:
        folder_paths.add_model_folder_path(folder.name, str(folder))
    return added
