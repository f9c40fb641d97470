"""Tiny random instances of ComfyUI's own diffusion transformers, with the truth about their tokens written by hand.

A `Tiny` is one situation: a model, a latent, conditionings with or without references, and the segments that its video
self attention must be found to have. Models come through ComfyUI's loader where detection allows tiny sizes, else the
module is placed into its base model class. Import this file only after ComfyUI is importable.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

FP32 = {"dtype": torch.float32, "device": "cpu"}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(cls: type, /, **config: Any) -> torch.nn.Module:
    """An instance of a ComfyUI class with random weights large enough that attention shows in the output."""
    import comfy.ops

    module = cls(**config, **FP32, operations=comfy.ops.disable_weight_init).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not name.startswith("motion_encoder"):   # Animate's is large, and unused here
            value.normal_(0, 0.05, generator=generator)
            if value.ndim <= 1 and name.endswith(("weight", "gamma", "scale")):
                value += 1.0
    return module


def loaded(module: torch.nn.Module, **transformer: Any):
    """The MODEL that ComfyUI's own loader makes of the module's weights."""
    import comfy.sd

    metadata = {"config": json.dumps({"transformer": transformer})} if transformer else None
    return comfy.sd.load_diffusion_model_state_dict(module.state_dict(), metadata=metadata)


def placed(module: torch.nn.Module, base: str, config: str, **arguments: Any):
    """A MODEL around the module itself, in its base model class, for sizes that detection does not know."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    settings = getattr(comfy.supported_models, config)({"image_model": "", "disable_unet_model_creation": True})
    settings.unet_config |= {"in_channels": 16, "out_channels": 16}
    model = getattr(comfy.model_base, base)(settings, **arguments)
    model.diffusion_model = module
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@dataclass(frozen=True)
class Tiny:
    """One situation.

    segments: (kind, token count) in order, with the T H W grid in place of the count for the video
    layers: video self attentions per forward
    others: attention calls per forward that are none
    text: tokens and channels of the prompt
    """

    name: str
    family: str
    model: Callable[[], Any]
    latent: tuple
    segments: tuple
    layers: int = 2
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


def sample(model, tiny: Tiny, *, steps: int = 2, cfg: float = 1.0, sampler: str = "euler", batch: int = 1, seed: int = 3,
           prompts: tuple | None = None, latent: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    """A run through ComfyUI's KSampler; video and sound of a nested latent come as one flat tensor."""
    import nodes

    positive, negative = prompts or (tiny.prompt(1), tiny.prompt(2))
    latent = {"samples": tiny.samples(batch) if latent is None else latent}
    with torch.inference_mode():
        out = nodes.common_ksampler(model, seed, steps, cfg, sampler, "simple", positive, negative, latent, **kwargs)
    out = out[0]["samples"]
    return torch.cat([t.flatten() for t in out.unbind()]) if out.is_nested else out.clone()


# ------------------------------------------------------------------------------------------------ models, built once

WAN = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2, "text_dim": 32, "freq_dim": 64}


@functools.cache
def wan(cls: str = "WanModel", **config: Any):
    import comfy.ldm.wan.ar_model
    import comfy.ldm.wan.model
    import comfy.ldm.wan.model_animate
    import comfy.ldm.wan.model_wandancer

    modules = comfy.ldm.wan
    places = (modules.model, modules.model_animate, modules.model_wandancer, modules.ar_model)
    found = next(getattr(place, cls) for place in places if hasattr(place, cls))
    module = build(found, **{**WAN, "in_dim": 16, **config})
    if cls == "CausalWanModel":
        return placed(module, "WAN21_CausalAR", "WAN21_T2V")
    return loaded(module, text_dim=WAN["text_dim"], freq_dim=WAN["freq_dim"], **{
        key: value for key, value in config.items() if key in ("audio_dim", "audio_inject_layers", "num_heads")})


@functools.cache
def hunyuan(base: str = "HunyuanVideo", vision: int | None = None, byt5: bool = False, patch: tuple = (1, 2, 2),
            channels: tuple = (16, 16), types: bool = False):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    module = build(
        HunyuanVideo, in_channels=channels[0], out_channels=channels[1], vec_in_dim=768 if base == "HunyuanVideo" else None,
        context_in_dim=32, hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=1, depth_single_blocks=2,
        axes_dim=[16, 56, 56] if len(patch) == 3 else [64, 64], theta=256, patch_size=list(patch), qkv_bias=True,
        guidance_embed=True, byt5=byt5, meanflow=False, use_cond_type_embedding=types, vision_in_dim=vision,
        meanflow_sum=False,
    )
    if base == "HunyuanVideo":
        return loaded(module)
    return placed(module, base, base)


@functools.cache
def cogvideox(v15: bool = False, in_channels: int = 16):
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    later = {"patch_size_t": 2, "sample_height": 96, "sample_width": 170, "sample_frames": 81} if v15 else {}
    return loaded(build(
        CogVideoXTransformer3DModel, num_attention_heads=2, attention_head_dim=64, in_channels=in_channels, out_channels=16,
        time_embed_dim=32, text_embed_dim=32, num_layers=2, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=False, **later,
    ))


@functools.cache
def ltxv():
    from comfy.ldm.lightricks.model import LTXVModel

    sizes = {"attention_head_dim": 64, "num_attention_heads": 2, "caption_channels": 32}
    return loaded(build(LTXVModel, in_channels=128, cross_attention_dim=128, num_layers=2, **sizes), **sizes)


@functools.cache
def ltxav():
    from comfy.ldm.lightricks.av_model import LTXAVModel

    module = build(
        LTXAVModel, in_channels=128, audio_in_channels=128, cross_attention_dim=128, audio_cross_attention_dim=64,
        attention_head_dim=64, audio_attention_head_dim=32, num_attention_heads=2, audio_num_attention_heads=2,
        caption_channels=32, num_layers=2, connector_num_attention_heads=1, connector_attention_head_dim=32,
        connector_num_layers=1,
    )
    return placed(module, "LTXAV", "LTXAV")


@functools.cache
def mochi():
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

    module = build(
        AsymmDiTJoint, depth=1, patch_size=2, num_heads=12, hidden_size_x=1536, hidden_size_y=64, mlp_ratio_x=8.0,
        mlp_ratio_y=4.0, learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True,
        patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True, timestep_scale=1000.0, use_t5=True,
        t5_feat_dim=32, t5_token_length=16,
    )
    return placed(module, "GenmoMochi", "GenmoMochi")


COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 128, "num_blocks": 2, "num_heads": 1, "concat_padding_mask": True,
    "pos_emb_cls": "rope3d", "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 16,
    "crossattn_emb_channels": 32,
}


@functools.cache
def cosmos():
    from comfy.ldm.cosmos.model import GeneralDIT

    module = build(
        GeneralDIT, block_config="FA-CA-MLP", pos_emb_learnable=False, block_x_format="THWBD", affline_emb_norm=True,
        extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable", **COSMOS,
    )
    return placed(module, "CosmosVideo", "CosmosT2V")


@functools.cache
def cosmos_predict2():
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    module = build(MiniTrainDIT, pos_emb_learnable=True, rope_enable_fps_modulation=False, **COSMOS)
    return placed(module, "CosmosPredict2", "CosmosT2IPredict2")


@functools.cache
def kandinsky5():
    from comfy.ldm.kandinsky5.model import Kandinsky5

    module = build(
        Kandinsky5, in_text_dim=32, in_text_dim2=768, time_dim=32, model_dim=128, ff_dim=128, visual_embed_dim=132,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(16, 24, 24),
    )
    return placed(module, "Kandinsky5", "Kandinsky5")


@functools.cache
def minimax():
    from comfy.ldm.minimax.model import MiniMaxH3Model

    module = build(
        MiniMaxH3Model, hidden_size=128, num_layers=2, token_refiner_num_layers=1, num_attention_heads=1,
        attention_head_dim=128, ffn_hidden_size=64, text_dim=32, time_embed_hidden_size=32, time_embed_dim=16,
        timestep_input_dim=16,
    )
    return loaded(module)


@functools.cache
def flux():
    from comfy.ldm.flux.model import Flux

    return loaded(build(
        Flux, in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=32, hidden_size=128, mlp_ratio=4.0,
        num_heads=1, depth=1, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
        guidance_embed=True, txt_ids_dims=[],
    ))


@functools.cache
def qwen_image():
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    module = build(QwenImageTransformer2DModel, in_channels=64, num_layers=2, attention_head_dim=128,
                   num_attention_heads=1, joint_attention_dim=32)
    return placed(module, "QwenImage", "QwenImage")


@functools.cache
def lumina(multiple: int | None = None):
    from comfy.ldm.lumina.model import NextDiT

    module = build(
        NextDiT, patch_size=2, in_channels=16, dim=96, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1,
        qk_norm=True, cap_feat_dim=32, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0,
        pad_tokens_multiple=multiple,
    )
    return placed(module, "Lumina2", "Lumina2")


@functools.cache
def seedvr2():
    from comfy.ldm.seedvr.model import NaDiT

    module = build(NaDiT, norm_eps=1e-5, num_layers=2, mlp_type="swiglu", vid_dim=128, txt_in_dim=5120, heads=1,
                   head_dim=128, mm_layers=1, vid_out_norm=True)
    return placed(module, "SeedVR2", "SeedVR2")


# ------------------------------------------------------------------------------------------------ situations

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
         layers=4, others=4, cond=lambda: {"vace_frames": [noise(1, 32, 3, 8, 12)] * 2,
                                           "vace_mask": [torch.ones(1, 64, 3, 8, 12)] * 2}),
    Tiny("wan_camera", "wan", lambda: wan("CameraWanModel", model_type="camera_2.2", in_dim=36), VIDEO, (("video", GRID),),
         cond=lambda: {"camera_conditions": noise(1, 24, 3, 64, 96)}),
    Tiny("wan_s2v", "wan_s2v", lambda: wan("WanModel_S2V", audio_inject_layers=(0,), audio_dim=64), VIDEO,
         (("video", GRID), ("reference", 24), ("reference", 24), ("reference", 6), ("reference", 4)),
         cond=lambda: {"audio_embed": noise(1, 25, 64, 12), "reference_latents": [noise(1, 16, 1, 8, 12)],
                       "reference_motion": noise(1, 16, 19, 8, 12)}),
    Tiny("wan_humo", "wan_humo", lambda: wan("HumoWanModel"), VIDEO,
         (("video", GRID), ("reference", 24)), others=4,
         cond=lambda: {"audio_embed": noise(1, 3, 8, 5, 1280), "reference_latents": [noise(1, 16, 1, 8, 12)]}),
    Tiny("wan_animate", "wan", lambda: wan("AnimateWanModel", in_dim=36, num_layers=5), VIDEO, (("video", GRID),),
         layers=5, others=10, cond=lambda: {"clip_vision_output": clip_vision(), "pose_video_latent": noise(1, 16, 2, 8, 12)}),
    Tiny("wan_scail", "wan_scail", lambda: wan("SCAILWanModel", model_type="scail", in_dim=20), VIDEO,
         (("reference", 24), ("video", GRID), ("pose", 18)), others=4,
         cond=lambda: {"clip_vision_output": clip_vision(), "reference_latents": [noise(1, 16, 1, 8, 12)],
                       "pose_video_latent": noise(1, 16, 3, 4, 6)}),
    Tiny("wan_dancer", "wan", lambda: wan("WanDancerModel", in_dim=36, audio_inject_layers=(0,)), VIDEO,
         (("video", GRID),), others=4, cond=lambda: {"clip_vision_output": clip_vision(), "audio_embed": noise(1, 12, 35)}),
    Tiny("wan_causal", "wan", lambda: wan("CausalWanModel"), VIDEO, (("video", GRID),)),
    Tiny("hunyuan_video", "hunyuan_video", hunyuan, VIDEO, (("text", 7), ("video", GRID)), layers=3),
    Tiny("hunyuan_video_masked", "hunyuan_video", hunyuan, VIDEO, (("text", 7), ("reference", 24), ("video", GRID)),
         layers=3, cond=lambda: {"attention_mask": True, "ref_latent": noise(1, 16, 1, 8, 12)}),
    Tiny("hunyuan_video_15", "hunyuan_video_15",
         lambda: hunyuan("HunyuanVideo15", 48, True, (1, 1, 1), (65, 32), types=True), (1, 32, 3, 4, 6),
         (("reference", 9), ("text", 5), ("text", 7), ("video", (3, 4, 6))), layers=3,
         cond=lambda: {"clip_vision_output": clip_vision(9, 48), "conditioning_byt5small": noise(1, 5, 1472)}),
    Tiny("hunyuan_image", "hunyuan_image", lambda: hunyuan("HunyuanImage21", None, True, (2, 2), (64, 64)),
         (1, 64, 8, 12), (("text", 7), ("text", 5), ("video", (1, 4, 6))), layers=3,
         cond=lambda: {"conditioning_byt5small": noise(1, 5, 1472)}),
    Tiny("cogvideox", "cogvideox", cogvideox, VIDEO, (("text", 7), ("video", GRID)), others=0),
    Tiny("cogvideox_15_odd", "cogvideox", lambda: cogvideox(True), (1, 16, 3, 7, 11), (("text", 7), ("video", (2, 4, 6))),
         others=0),
    Tiny("cogvideox_i2v", "cogvideox", lambda: cogvideox(in_channels=32), VIDEO, (("text", 7), ("video", GRID)), others=0,
         cond=lambda: {"concat_latent_image": noise(1, 16, 3, 8, 12)}),
    Tiny("ltxv", "ltxv", ltxv, (1, 128, 3, 4, 6), (("video", GRID),), cond=lambda: {"attention_mask": True}),
    Tiny("ltxv_guided", "ltxv", ltxv, (1, 128, 4, 4, 6), (("video", GRID), ("reference", 24)), cond=guide_frames),
    Tiny("ltxav", "ltxav", ltxav, ((1, 128, 3, 4, 6), (1, 8, 10, 16)), (("video", GRID),), others=10, text=(7, 64)),
    Tiny("mochi", "mochi", mochi, (1, 12, 3, 8, 12), (("video", GRID), ("text", 7)), layers=1,
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
    Tiny("flux", "flux", flux, (1, 16, 7, 11), (("text", 7), ("video", (1, 4, 6))), layers=3, others=0),
    Tiny("flux_reference", "flux", flux, (1, 16, 8, 12), (("text", 7), ("video", (1, 4, 6)), ("reference", 15)), layers=3,
         others=0, cond=lambda: {"reference_latents": [noise(1, 16, 6, 9)]}),
    Tiny("qwen_image", "qwen_image", qwen_image, (1, 16, 1, 8, 12), (("text", 7), ("video", (1, 4, 6))), others=0),
    Tiny("qwen_image_edit", "qwen_image", qwen_image, (1, 16, 1, 8, 12),
         (("text", 7), ("video", (1, 4, 6)), ("reference", 15)), others=0,
         cond=lambda: {"reference_latents": [noise(1, 16, 1, 6, 9)]}),
    Tiny("lumina2", "lumina2", lumina, (1, 16, 8, 12), (("text", 7), ("video", (1, 4, 6)))),
    Tiny("z_image", "lumina2", lambda: lumina(32), (1, 16, 8, 12),
         (("text", 7), ("padding", 25), ("video", (1, 4, 6)), ("padding", 8))),
)
BY_NAME = {tiny.name: tiny for tiny in TINIES}
