"""All native model families, and how to find the one of a loaded diffusion model.

One file per group of model files in ComfyUI. To add a family, add its file and its `FAMILIES` below.
"""
from __future__ import annotations

from torch import nn

from . import (
    cogvideox,
    cosmos,
    hunyuan_video,
    images,
    interspatial,
    kandinsky5,
    lightricks,
    minimax_h3,
    mochi,
    seedvr2,
    wan,
)
from .family import Family, Inputs, Timed, native_classes

__all__ = ["FAMILIES", "Family", "Inputs", "Timed", "bare", "family_of"]

FAMILIES: tuple[Family, ...] = (
    *wan.FAMILIES, *hunyuan_video.FAMILIES, *cogvideox.FAMILIES, *lightricks.FAMILIES, *mochi.FAMILIES,
    *cosmos.FAMILIES, *kandinsky5.FAMILIES, *minimax_h3.FAMILIES, *images.FAMILIES, *seedvr2.FAMILIES,
    *interspatial.FAMILIES,
)


def bare(diffusion_model: nn.Module) -> nn.Module:
    """The module itself where torch.compile has put an OptimizedModule around it."""
    return getattr(diffusion_model, "_orig_mod", diffusion_model)


def family_of(diffusion_model: nn.Module) -> Family | None:
    """The family of a diffusion model, None for one that is not known. The most specific class decides."""
    model = bare(diffusion_model)
    for cls in native_classes(model):
        for family in FAMILIES:
            if cls.__name__ in family.classes and family.variant(model):
                return family
    return None
