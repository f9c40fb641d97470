"""Cosmos 1 and Cosmos Predict2 (with Anima). Source: comfy/ldm/cosmos/ in ComfyUI 0.30.0.

The self attention holds the video alone; the text comes by cross attention.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed, padded

ANIMA_TEXT_TOKENS = 512   # Anima pads its adapted text to at least this many tokens inside the model


def _layout(i: Inputs) -> TokenLayout:
    patch = (i.model.patch_temporal, i.model.patch_spatial, i.model.patch_spatial)
    return arrange([("video", padded(i.latent, patch))])


def _others(i: Inputs) -> dict[int, str]:
    others = {i.text: "the text"}
    if shape := i.shape("t5xxl_ids"):
        others[max(shape[-1], ANIMA_TEXT_TOKENS)] = "the adapted text"
    return others


FAMILIES = (
    Family("cosmos", ("GeneralDIT",), ("blocks",), 8, 8, _layout, streams={"blocks": ("x",)}, batch_axis=3),
    Family("cosmos_predict2", ("MiniTrainDIT",), ("blocks",), 4, 8, _layout, _others,
           timed=(Timed("denoise_mask", 2),), streams={"blocks": ("x_B_T_H_W_D",)},
           modules=("self_attn", "cross_attn", "mlp")),
)
