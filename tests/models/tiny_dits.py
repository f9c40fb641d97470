"""Tiny random instances of ComfyUI's own diffusion transformers, each built once per session.

Models come through ComfyUI's loader where detection allows tiny sizes, else the module is placed into its base model
class. ComfyUI is imported when a model is built, not before.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

FP32 = {"dtype": torch.float32, "device": "cpu"}


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
        HunyuanVideo, in_channels=channels[0], out_channels=channels[1], context_in_dim=32,
        vec_in_dim=768 if base == "HunyuanVideo" else None,
        hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=1, depth_single_blocks=2,
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
        CogVideoXTransformer3DModel, num_attention_heads=2, attention_head_dim=64, in_channels=in_channels,
        out_channels=16, time_embed_dim=32, text_embed_dim=32, num_layers=2, use_rotary_positional_embeddings=True,
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


@functools.cache
def interspatial(**config: Any):
    """This pack's own model, through its loader."""
    from interspatial.models.host.interspatial_model import InterspatialConfig, patcher_of
    from interspatial.models.nets.dit_config import DiTConfig
    from interspatial.models.nets.interspatial_dit import InterspatialDiT

    sizes = DiTConfig(**{"width": 128, "depth": 2, "heads": 2, "points": 64, "point_heads": 2, **config})
    return patcher_of(build(InterspatialDiT, config=sizes).state_dict(), InterspatialConfig(sizes), {}, False)
