"""Kandinsky 5. Source: comfy/ldm/kandinsky5/model.py in ComfyUI 0.30.0.

Blocks that refine the text alone come first, then visual blocks with self attention over the video and cross attention.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed, padded


def _layout(i: Inputs) -> TokenLayout:
    return arrange([("video", padded(i.latent, i.model.patch_size))])


FAMILIES = (
    Family("kandinsky5", ("Kandinsky5",), ("visual_transformer_blocks",), 4, 8, _layout, timed=(Timed("c_concat", 2),),
           streams={"visual_transformer_blocks": ("visual_embed",)},
           modules=("self_attention", "cross_attention", "feed_forward")),
)
