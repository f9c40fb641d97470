"""HunyuanVideo 1, 1.5 and HunyuanImage 2.1. Source: comfy/ldm/hunyuan_video/model.py in ComfyUI 0.30.0.

Joint attention, text first: vision states, then the language model and ByT5 texts, then a reference latent, then video.
"""
from __future__ import annotations

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed, padded


def _patch(model) -> tuple[int, ...]:
    return (1, *model.patch_size)[-3:]


def _layout(i: Inputs) -> TokenLayout:
    model, patch = i.model, _patch(i.model)
    text = [("text", i.text)]
    byt5 = i.shape("txt_byt5")
    if byt5 and model.byt5_in is not None:
        # 1.5 marks its texts with a type embedding and puts ByT5 first, the others append it
        text.insert(0 if model.cond_type_embedding is not None else 1, ("text", byt5[1]))
    if vision := i.shape("clip_fea"):
        text.insert(0, ("reference", vision[1]))
    reference = i.shape("ref_latent")
    if reference:
        text.append(("reference", padded(reference, patch)))
    return arrange([*text, ("video", padded(i.latent, patch))])


BLOCKS = ("double_blocks", "single_blocks")
TIMED = (Timed("c_concat", 2),)
STREAMS = {"double_blocks": ("img", "txt"), "single_blocks": ("x",)}   # as in Flux, whose blocks these are

FAMILIES = (
    Family("hunyuan_image", ("HunyuanVideo",), BLOCKS, 1, 32, _layout, variant=lambda m: len(m.patch_size) == 2,
           streams=STREAMS),
    Family("hunyuan_video_15", ("HunyuanVideo",), BLOCKS, 4, 16, _layout, timed=TIMED,
           variant=lambda m: tuple(m.patch_size) == (1, 1, 1), streams=STREAMS),
    Family("hunyuan_video", ("HunyuanVideo",), BLOCKS, 4, 8, _layout, timed=TIMED, streams=STREAMS),
)
