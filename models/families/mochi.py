"""Mochi. Source: comfy/ldm/genmo/joint_model/asymm_models_joint.py in ComfyUI 0.30.0.

Joint attention, video first, then the text cut to `num_tokens`. The model has no wrapper around its forward.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, cropped

DEFAULT_TEXT_TOKENS = 256   # the model's own default of num_tokens


def _layout(i: Inputs) -> TokenLayout:
    patch = (1, i.model.patch_size, i.model.patch_size)
    text = min(int(i.conds.get("num_tokens", DEFAULT_TEXT_TOKENS)), i.text)
    return arrange([("video", cropped(i.latent, patch)), ("text", text)])


FAMILIES = (Family("mochi", ("AsymmDiTJoint",), ("blocks",), 6, 8, _layout, others=lambda i: {},
                   streams={"blocks": ("x", "y")}, modules=("attn", "mlp_x", "mlp_y")),)
