"""LTX-Video and LTX-2 with sound. Source: comfy/ldm/lightricks/ in ComfyUI 0.30.0.

The self attention holds the video alone, with guide frames behind it where keyframes are given. ComfyUI drops guide
tokens that carry no picture; how many is decided by values on the device, so such a forward is left alone by its count.
"""
from __future__ import annotations

import math

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed


def _layout(i: Inputs) -> TokenLayout | str:
    grid = i.latent[-3:]
    guides = i.shape("keyframe_idxs")
    if not guides or not guides[2]:
        return arrange([("video", grid)])
    frame = grid[1] * grid[2]
    frames, rest = divmod(guides[2], frame)
    if rest or frames >= grid[0]:
        return f"{guides[2]} guide tokens are not whole frames of {frame} behind a video"
    return arrange([("video", (grid[0] - frames, *grid[1:])), ("reference", (frames, *grid[1:]))])


def _audio_tokens(i: Inputs) -> int:
    references = (i.conds.get("ref_audio") or {}).get("tokens")
    return i.audio[2] + (0 if references is None else references.shape[1])


def _others(i: Inputs) -> dict[int, str]:
    others = {i.text: "the text"}
    if guides := i.shape("keyframe_idxs"):
        others[math.prod(i.latent[-3:]) - guides[2]] = "the frames without their guides"
    if i.audio:
        others[_audio_tokens(i)] = "the audio"
    return others


FAMILIES = (
    Family("ltxv", ("LTXVModel",), ("transformer_blocks",), 8, 32, _layout, _others, timed=(Timed("denoise_mask", 2),),
           streams={"transformer_blocks": ("x",)}, modules=("attn1", "attn2", "ff")),
    Family("ltxav", ("LTXAVModel",), ("transformer_blocks",), 8, 32, _layout, _others,
           timed=(Timed("denoise_mask", 2),), streams={"transformer_blocks": ("x",)}),
)
