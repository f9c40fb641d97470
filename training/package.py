"""Makes the pack importable as `interspatial` from a checkout of any name, and ComfyUI importable on CPU or GPU.

Trainers run from the repository: `python -m training.vae`. ComfyUI is taken from COMFYUI_PATH, else `.comfyui/ComfyUI`.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "training" / "runs"
CHECKPOINTS = ROOT / "checkpoints"


def prepare(comfy: bool = True) -> None:
    """Call before importing `interspatial` or `comfy`."""
    package = types.ModuleType("interspatial")
    package.__path__ = [str(ROOT)]
    sys.modules.setdefault("interspatial", package)
    if not comfy:
        return
    sys.path.insert(0, os.environ.get("COMFYUI_PATH") or str(ROOT / ".comfyui" / "ComfyUI"))
    import comfy.cli_args
    import torch

    # core's own parser stays off: the arguments are the trainer's
    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    comfy.cli_args.args.use_pytorch_cross_attention = True  # has a fused backward, core's default on CPU does not
    import comfy.model_management

    comfy.model_management.in_training = True  # core then uses operators that have gradients
