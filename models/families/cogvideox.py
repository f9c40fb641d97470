"""CogVideoX 1.0 and 1.5. Source: comfy/ldm/cogvideo/model.py in ComfyUI 0.30.0.

Joint attention, text first. The model shows neither a block index nor its grid. Texts of unequal length are repeated
to a common multiple by ComfyUI, so the text length is that of the call, not that of the prompt.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed, padded


def _layout(i: Inputs) -> TokenLayout:
    patch = (i.model.patch_size_t or 1, i.model.patch_size, i.model.patch_size)
    return arrange([("text", i.text), ("video", padded(i.latent, patch))])


FAMILIES = (
    Family("cogvideox", ("CogVideoXTransformer3DModel",), ("blocks",), 4, 8, _layout,
           others=lambda i: {}, timed=(Timed("c_concat", 2),),
           streams={"blocks": ("hidden_states", "encoder_hidden_states")}),
)
