"""MiniMax-H3, video with sound. Source: comfy/ldm/minimax/model.py in ComfyUI 0.30.0.

One packed sequence per forward, batch 1: text, conditioning frames and references, target audio, target video. ComfyUI
writes the segments into the payload of the conditioning before sampling.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def _audio_clock(model, options: Mapping[str, Any], sigma: float) -> tuple[float, float]:
    """The sound runs through the same steps on a schedule with a shift of its own.

    A shift s takes the base time u to s u / (1 + (s - 1) u). sigma: of the video, 0 to 1
    returns: sigma of the sound, and its derivative by the video's
    """
    video = float(options.get("minimax_h3_sigma_shift_video", model.sigma_shift_video))
    sound = float(options.get("minimax_h3_sigma_shift_audio", model.sigma_shift_audio))
    sigma = max(sigma, 1e-6)   # as the model clamps it
    u = sigma / (video + (1 - video) * sigma)
    shifted, unshifted = 1 + (sound - 1) * u, 1 + (video - 1) * u
    return sound * u / shifted, sound * unshifted**2 / (video * shifted**2)


FAMILIES = (Family("minimax_h3", ("MiniMaxH3Model",), ("blocks",), 4, 16, _layout,
                   streams={"blocks": ("x",)}, modules=("attn", "mlp"), audio_clock=_audio_clock),)
