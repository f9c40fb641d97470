"""MiniMax-H3, video with sound. Source: comfy/ldm/minimax/model.py in ComfyUI 0.30.0.

One packed sequence per forward, batch 1: text, conditioning frames and references, target audio, target video. ComfyUI
writes the segments into the payload of the conditioning before sampling.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, padded

KIND = {"text": "text", "cond": "reference", "ref_img": "reference", "ref_audio": "audio", "audio": "audio"}


def _layout(i: Inputs) -> TokenLayout | str:
    packed = (i.conds.get("minimax_payload") or {}).get("layout")
    grid = padded(i.latent, i.model.patch_size)
    patch = i.model.patch_size
    signature = (i.text, *(g * p for g, p in zip(grid, patch, strict=True)), i.audio[-1] if i.audio else 0)
    if packed is None or tuple(packed.signature) != signature:
        return "the packed layout of this forward is built inside the model and cannot be read beforehand"
    parts = []
    for start, stop, kind in packed.segments:
        if kind == "video":
            parts.append(("video", grid))
        elif kind in KIND:
            parts.append((KIND[kind], stop - start))
        else:
            return f"the packed layout holds a segment of unknown kind {kind!r}"
    return arrange(parts)


FAMILIES = (Family("minimax_h3", ("MiniMaxH3Model",), ("blocks",), 4, 16, _layout,
                   streams={"blocks": ("x",)}),)
