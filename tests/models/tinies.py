"""Situations of tiny models, with the truth about their tokens written by hand.

A `Tiny` is a model, a latent, prompts with or without references, and the segments that its video self attention must
be found to have. `sample` runs one through ComfyUI's KSampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from interspatial.tests.models.tiny_dits import (
    cogvideox,
    cosmos,
    cosmos_predict2,
    flux,
    hunyuan,
    interspatial,
    kandinsky5,
    ltxav,
    ltxv,
    lumina,
    minimax,
    mochi,
    qwen_image,
    wan,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal noise, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Tiny:
    """One situation.

    segments: (kind, token count) in order, with the T H W grid in place of the count for the video
    layers: numbers of the video self attentions of one forward, in order
    others: attention calls per forward that are none
    text: tokens and channels of the prompt
    """

    name: str
    family: str
    model: Callable[[], Any]
    latent: tuple
    segments: tuple
    layers: tuple[int, ...] = (0, 1)
    others: int = 2
    text: tuple[int, int] = (7, 32)
    cond: Callable[[], dict] = field(default=dict)

    def prompt(self, seed: int, tokens: int | None = None) -> list:
        """A conditioning with a random text."""
        tokens = tokens or self.text[0]
        cond = self.cond()
        if "attention_mask" in cond:
            cond["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
        return [[noise(1, tokens, self.text[1], seed=seed), {"pooled_output": noise(1, 768, seed=seed), **cond}]]

    def samples(self, batch: int = 1):
        """An empty latent; nested where the model makes video and sound."""
        import comfy.nested_tensor

        shapes = self.latent if isinstance(self.latent[0], tuple) else (self.latent,)
        tensors = [torch.zeros(batch, *shape[1:]) for shape in shapes]
        return tensors[0] if len(tensors) == 1 else comfy.nested_tensor.NestedTensor(tensors)


def sample(model, tiny: Tiny, *, steps: int = 2, cfg: float = 1.0, batch: int = 1, prompts: tuple | None = None,
           latent: torch.Tensor | None = None) -> torch.Tensor:
    """A run through ComfyUI's KSampler; video and sound of a nested latent come as one flat tensor."""
    import nodes

    positive, negative = prompts or (tiny.prompt(1), tiny.prompt(2))
    latent = {"samples": tiny.samples(batch) if latent is None else latent}
    with torch.inference_mode():
        out = nodes.common_ksampler(model, 3, steps, cfg, "euler", "simple", positive, negative, latent)
    out = out[0]["samples"]
    return torch.cat([t.flatten() for t in out.unbind()]) if out.is_nested else out.clone()


VIDEO = (1, 16, 3, 8, 12)
GRID = (3, 4, 6)


def clip_vision(tokens: int = 257, width: int = 1280) -> SimpleNamespace:
    states = noise(1, tokens, width)
    return SimpleNamespace(penultimate_hidden_states=states, last_hidden_state=states)


def guide_frames(frames: int = 1, keep: bool = True) -> dict:
    """LTXV conditioning with guide frames behind a latent of 4 x 4 x 6; `keep` False drops half of their tokens."""
    mask = torch.ones(1, 1, 4, 4, 6)
    mask[:, :, -frames:] = 0.0
    if not keep:
        mask[:, :, -frames:, :, ::2] = -1.0
    return {"keyframe_idxs": torch.zeros(1, 3, frames * 24, 2), "concat_mask": mask, "attention_mask": True}


def walking(frames: int = 9, people: int = 2, points: int = 20):
    """A scene for this pack's own model: people who drift before a camera that moves along, in a picture of 96 x 64."""
    from interspatial.models.control.body import BodyTrack
    from interspatial.models.control.camera import CameraPath
    from interspatial.models.control.scene import Scene

    drift = 0.05 * torch.arange(frames)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    placed = 0.4 * noise(people, 1, points, 3, seed=5) + drift[:, None] + torch.tensor([0.0, 0.0, -3.0])
    w2c = torch.eye(4).repeat(frames, 1, 1)
    w2c[:, 1, 1] = w2c[:, 2, 2] = -1.0
    w2c[:, 0, 3] = -0.02 * torch.arange(frames)
    K = torch.tensor([[64.0, 0, 48], [0, 64, 32], [0, 0, 1]]).repeat(frames, 1, 1)
    known = torch.ones(people, frames, points, dtype=torch.bool)
    return Scene(CameraPath(K, w2c, 64, 96), BodyTrack(placed, known, torch.arange(points) % 14, 16.0))


def peopled():
    """The same with who they are and a background."""
    from interspatial.models.control.scene import Background, Reference

    scene = walking()
    seen = Reference(noise(1, 16, 1, 8, 12, seed=3), scene.body, scene.camera)
    return replace(scene, reference=seen, background=Background(noise(1, 16, 3, 8, 12, seed=4)))


TINIES = (
    Tiny("wan", "wan", wan, VIDEO, (("video", GRID),)),
    Tiny("wan_odd", "wan", wan, (1, 16, 2, 7, 11), (("video", (2, 4, 6)),)),
    Tiny("wan_i2v", "wan", lambda: wan(model_type="i2v", in_dim=36), VIDEO, (("video", GRID),), others=4,
         cond=lambda: {"clip_vision_output": clip_vision(), "concat_latent_image": noise(1, 16, 3, 8, 12),
                       "concat_mask": torch.ones(1, 1, 3, 8, 12)}),
    Tiny("wan_fun_reference", "wan", lambda: wan(in_dim_ref_conv=16), VIDEO, (("reference", 24), ("video", GRID)),
         cond=lambda: {"reference_latents": [noise(1, 16, 1, 8, 12)]}),
    Tiny("wan_phantom", "wan", wan, VIDEO, (("video", GRID), ("reference", 48)),
         cond=lambda: {"time_dim_concat": noise(1, 16, 2, 8, 12)}),
    Tiny("wan_bernini", "wan", wan, VIDEO, (("video", GRID), ("reference", 24), ("reference", 30)),
         cond=lambda: {"context_latents": [noise(1, 16, 1, 8, 12), noise(1, 16, 2, 5, 9)]}),
    Tiny("wan_5b", "wan_5b", lambda: wan(in_dim=48, out_dim=48), (1, 48, 3, 4, 6), (("video", (3, 2, 3)),)),
    Tiny("wan_vace", "wan", lambda: wan("VaceWanModel", vace_layers=1, vace_in_dim=96), VIDEO, (("video", GRID),),
         layers=(0, 3, 6, 1), others=4, cond=lambda: {"vace_frames": [noise(1, 32, 3, 8, 12)] * 2,
                                           "vace_mask": [torch.ones(1, 64, 3, 8, 12)] * 2}),
    Tiny("wan_camera", "wan", lambda: wan("CameraWanModel", model_type="camera_2.2", in_dim=36), VIDEO,
         (("video", GRID),), cond=lambda: {"camera_conditions": noise(1, 24, 3, 64, 96)}),
    Tiny("wan_s2v", "wan_s2v", lambda: wan("WanModel_S2V", audio_inject_layers=(0,), audio_dim=64), VIDEO,
         (("video", GRID), ("reference", 24), ("reference", 24), ("reference", 6), ("reference", 4)),
         cond=lambda: {"audio_embed": noise(1, 25, 64, 12), "reference_latents": [noise(1, 16, 1, 8, 12)],
                       "reference_motion": noise(1, 16, 19, 8, 12)}),
    Tiny("wan_humo", "wan_humo", lambda: wan("HumoWanModel"), VIDEO,
         (("video", GRID), ("reference", 24)), others=4,
         cond=lambda: {"audio_embed": noise(1, 3, 8, 5, 1280), "reference_latents": [noise(1, 16, 1, 8, 12)]}),
    Tiny("wan_animate", "wan", lambda: wan("AnimateWanModel", in_dim=36, num_layers=5), VIDEO, (("video", GRID),),
         layers=(0, 1, 2, 3, 4), others=10,
         cond=lambda: {"clip_vision_output": clip_vision(), "pose_video_latent": noise(1, 16, 2, 8, 12)}),
    Tiny("wan_scail", "wan_scail", lambda: wan("SCAILWanModel", model_type="scail", in_dim=20), VIDEO,
         (("reference", 24), ("video", GRID), ("pose", 18)), others=4,
         cond=lambda: {"clip_vision_output": clip_vision(), "reference_latents": [noise(1, 16, 1, 8, 12)],
                       "pose_video_latent": noise(1, 16, 3, 4, 6)}),
    Tiny("wan_dancer", "wan", lambda: wan("WanDancerModel", in_dim=36, audio_inject_layers=(0,)), VIDEO,
         (("video", GRID),), others=4,
         cond=lambda: {"clip_vision_output": clip_vision(), "audio_embed": noise(1, 12, 35)}),
    Tiny("wan_causal", "wan", lambda: wan("CausalWanModel"), VIDEO, (("video", GRID),)),
    Tiny("hunyuan_video", "hunyuan_video", hunyuan, VIDEO, (("text", 7), ("video", GRID)), layers=(0, 1, 2)),
    Tiny("hunyuan_video_masked", "hunyuan_video", hunyuan, VIDEO, (("text", 7), ("reference", 24), ("video", GRID)),
         layers=(0, 1, 2), cond=lambda: {"attention_mask": True, "ref_latent": noise(1, 16, 1, 8, 12)}),
    Tiny("hunyuan_video_15", "hunyuan_video_15",
         lambda: hunyuan("HunyuanVideo15", 48, True, (1, 1, 1), (65, 32), types=True), (1, 32, 3, 4, 6),
         (("reference", 9), ("text", 5), ("text", 7), ("video", (3, 4, 6))), layers=(0, 1, 2),
         cond=lambda: {"clip_vision_output": clip_vision(9, 48), "conditioning_byt5small": noise(1, 5, 1472)}),
    Tiny("hunyuan_image", "hunyuan_image", lambda: hunyuan("HunyuanImage21", None, True, (2, 2), (64, 64)),
         (1, 64, 8, 12), (("text", 7), ("text", 5), ("video", (1, 4, 6))), layers=(0, 1, 2),
         cond=lambda: {"conditioning_byt5small": noise(1, 5, 1472)}),
    Tiny("cogvideox", "cogvideox", cogvideox, VIDEO, (("text", 7), ("video", GRID)), others=0),
    Tiny("cogvideox_15_odd", "cogvideox", lambda: cogvideox(True), (1, 16, 3, 7, 11),
         (("text", 7), ("video", (2, 4, 6))), others=0),
    Tiny("cogvideox_i2v", "cogvideox", lambda: cogvideox(in_channels=32), VIDEO, (("text", 7), ("video", GRID)),
         others=0, cond=lambda: {"concat_latent_image": noise(1, 16, 3, 8, 12)}),
    Tiny("ltxv", "ltxv", ltxv, (1, 128, 3, 4, 6), (("video", GRID),), cond=lambda: {"attention_mask": True}),
    Tiny("ltxv_guided", "ltxv", ltxv, (1, 128, 4, 4, 6), (("video", GRID), ("reference", 24)), cond=guide_frames),
    Tiny("ltxav", "ltxav", ltxav, ((1, 128, 3, 4, 6), (1, 8, 10, 16)), (("video", GRID),), others=10, text=(7, 64)),
    Tiny("mochi", "mochi", mochi, (1, 12, 3, 8, 12), (("video", GRID), ("text", 7)), layers=(0,),
         others=0, cond=lambda: {"attention_mask": True}),
    Tiny("cosmos", "cosmos", cosmos, VIDEO, (("video", GRID),)),
    Tiny("cosmos_predict2", "cosmos_predict2", cosmos_predict2, (1, 16, 3, 7, 11), (("video", GRID),)),
    Tiny("kandinsky5", "kandinsky5", kandinsky5, (1, 16, 3, 8, 12), (("video", GRID),), others=3),
    Tiny("minimax_h3", "minimax_h3", minimax, ((1, 24, 2, 4, 6), (1, 32, 2, 5)),
         (("text", 7), ("audio", 10), ("video", (2, 2, 3))), others=0),
    Tiny("minimax_h3_keyframe", "minimax_h3", minimax, ((1, 24, 2, 4, 6), (1, 32, 2, 5)),
         (("text", 7), ("reference", 6), ("audio", 10), ("video", (2, 2, 3))), others=0,
         cond=lambda: {"minimax_keyframes": [{"resolved_frame_index": 0, "latent": noise(1, 24, 1, 4, 6)}],
                       "minimax_frame_count": 5}),
    Tiny("flux", "flux", flux, (1, 16, 7, 11), (("text", 7), ("video", (1, 4, 6))), layers=(0, 1, 2), others=0),
    Tiny("flux_reference", "flux", flux, (1, 16, 8, 12), (("text", 7), ("video", (1, 4, 6)), ("reference", 15)),
         layers=(0, 1, 2), others=0, cond=lambda: {"reference_latents": [noise(1, 16, 6, 9)]}),
    Tiny("qwen_image", "qwen_image", qwen_image, (1, 16, 1, 8, 12), (("text", 7), ("video", (1, 4, 6))), others=0),
    Tiny("qwen_image_edit", "qwen_image", qwen_image, (1, 16, 1, 8, 12),
         (("text", 7), ("video", (1, 4, 6)), ("reference", 15)), others=0,
         cond=lambda: {"reference_latents": [noise(1, 16, 1, 6, 9)]}),
    Tiny("lumina2", "lumina2", lumina, (1, 16, 8, 12), (("text", 7), ("video", (1, 4, 6)))),
    Tiny("z_image", "lumina2", lambda: lumina(32), (1, 16, 8, 12),
         (("text", 7), ("padding", 25), ("video", (1, 4, 6)), ("padding", 8))),
    Tiny("interspatial", "interspatial", interspatial, VIDEO, (("video", (1, 4, 6)),), others=0,
         cond=lambda: {"interspatial_scene": walking()}),
)
BY_NAME = {tiny.name: tiny for tiny in TINIES}
