"""Wan 2.1 and 2.2 in all native variants. Source: comfy/ldm/wan/ in ComfyUI 0.30.0.

The text is never part of the self attention. What may stand around the video: the frame of a reference convolution in
front (Fun Control), whole reference frames behind (Phantom, S2V, HuMo), in-context latents behind (Bernini), pose
tokens of another size behind (SCAIL), packed motion frames behind (S2V).
"""
from __future__ import annotations

import math

from ..layout import TokenLayout, arrange
from .family import Family, Inputs, Timed, cropped, padded

CLASSES = ("WanModel", "VaceWanModel", "CameraWanModel", "AnimateWanModel", "WanDancerModel", "CausalWanModel")
HUMO_AUDIO_TOKENS = 16   # keys of one frame in HuMo's audio attention, fixed in WanT2VCrossAttentionGather
CONCAT = Timed("c_concat", 2)


def _time_concat(i: Inputs) -> list:
    shape = i.shape("time_dim_concat")
    return [("reference", padded(shape, i.model.patch_size))] if shape else []


def _layout(i: Inputs) -> TokenLayout | str:
    if "ar_state" in i.options:
        return "the model generates frame by frame from a key cache and shows no attention to hooks"
    patch, parts = i.model.patch_size, []
    reference = i.shape("reference_latent")
    if reference and i.model.ref_conv is not None:
        parts.append(("reference", cropped((1, *reference[-2:]), (1, *patch[1:]))))
    parts += [("video", padded(i.latent, patch)), *_time_concat(i)]
    parts += [("reference", padded(shape, patch)) for shape in i.shapes("context_latents")]
    return arrange(parts)


def _layout_behind(i: Inputs) -> TokenLayout:
    """S2V and HuMo: reference frames behind the video, then S2V's motion frames at three scales."""
    patch = i.model.patch_size
    parts = [("video", padded(i.latent, patch)), *_time_concat(i)]
    if reference := i.shape("reference_latent"):
        parts.append(("reference", cropped(reference, patch)))
    if motion := i.shape("reference_motion"):
        near, mid, far = i.model.frame_packer.zip_frame_buckets
        for frames, scale in ((near, 1), (mid, 2), (far, 4)):
            parts.append(("reference", cropped((frames, *motion[-2:]), (scale, 2 * scale, 2 * scale))))
    return arrange(parts)


def _layout_scail(i: Inputs) -> TokenLayout:
    """SCAIL: reference frames in front, the driving poses (often at half size) behind."""
    patch, parts = i.model.patch_size, []
    if reference := i.shape("reference_latent"):
        parts.append(("reference", padded(reference, patch)))
    parts += [("video", padded(i.latent, patch)), *_time_concat(i)]
    if pose := i.shape("pose_latents"):
        parts.append(("pose", padded(pose, patch)))
    return arrange(parts)


def _others(i: Inputs) -> dict[int, str]:
    others = {i.text: "the text"}
    for name in ("clip_fea", "clip_fea_ref"):
        if shape := i.shape(name):
            others[shape[-2]] = "the CLIP image"
    return others


def _others_humo(i: Inputs) -> dict[int, str]:
    frame = math.prod(padded(i.latent, i.model.patch_size)[1:])
    return {i.text: "the text", HUMO_AUDIO_TOKENS: "the audio", frame: "one frame"}


def _is_5b(model) -> bool:
    return model.out_dim == 48   # the 2.2 VAE has 48 channels and twice the spatial stride


TIMED = (
    CONCAT, Timed("vace_context", 3), Timed("camera_conditions", 2), Timed("denoise_mask", 2),
    Timed("pose_latents", 2, offset=1), Timed("face_pixel_values", 2, scale=4, offset=1),
)

FRAME_BY_FRAME = "the model generates frame by frame from a key cache that every block fills"


def _unskippable(i: Inputs) -> str | None:
    """VACE's hints, the voices of S2V and Dancer and the faces of Animate come between the blocks, and stay live."""
    return FRAME_BY_FRAME if "ar_state" in i.options else None


BLOCKS = {"streams": {"blocks": ("x",)}, "modules": ("self_attn", "cross_attn", "ffn"), "unskippable": _unskippable}

FAMILIES = (
    Family("wan_s2v", ("WanModel_S2V",), ("blocks",), 4, 8, _layout_behind, _others,
           timed=(CONCAT, Timed("audio_embed", 3, scale=4), Timed("control_video", 2)), **BLOCKS),
    Family("wan_humo", ("HumoWanModel",), ("blocks",), 4, 8, _layout_behind, _others_humo,
           timed=(CONCAT, Timed("audio_embed", 1)), **BLOCKS),
    Family("wan_scail", ("SCAILWanModel", "SCAIL2WanModel"), ("blocks",), 4, 8, _layout_scail, _others,
           timed=(CONCAT, Timed("pose_latents", 2), Timed("sam_latents", 2)), **BLOCKS),
    Family("wan_5b", CLASSES, ("blocks", "vace_blocks"), 4, 16, _layout, _others, _is_5b, timed=TIMED, **BLOCKS),
    Family("wan", CLASSES, ("blocks", "vace_blocks"), 4, 8, _layout, _others, timed=TIMED, **BLOCKS),
)
