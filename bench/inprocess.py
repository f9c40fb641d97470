"""ComfyUI and the pack in this process, with the tiny checkpoints on ComfyUI's own loaders. CPU or GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import comfy.model_management
import comfy.utils
import torch
from interspatial.models import host

import nodes  # ComfyUI's
from training.package import CHECKPOINTS

comfy.model_management.in_training = False
comfy.utils.PROGRESS_BAR_ENABLED = False
host.register_folders(CHECKPOINTS)

SHIFT, STEPS, CFG = 3.0, 20, 4.0
SIZE, LENGTH, FPS = 128, 17, 16.0


@lru_cache
def video_model(kind: str):
    """The tiny model through core's UNETLoader, with the noise shift it was trained with. kind: t2v or i2v"""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = nodes.UNETLoader().load_unet(f"tiny_puppet_{kind}.safetensors", "default")[0]
    return ModelSamplingSD3().patch(model, SHIFT)[0]


@lru_cache
def text_encoder():
    return host.load_text_encoder("tiny_puppet_umt5.safetensors")


@lru_cache
def vae():
    return nodes.VAELoader().load_vae("tiny_puppet_vae.safetensors")[0]


@lru_cache(512)
def conditioning(text: str):
    return nodes.CLIPTextEncode().encode(text_encoder(), text)[0]


@dataclass(frozen=True)
class Settings:
    steps: int = STEPS
    cfg: float = CFG
    sampler: str = "euler"
    scheduler: str = "simple"
    seed: int = 1


def sample(model, positive, negative, latent: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Through core's KSampler. returns: [1, 16, T, h, w]"""
    out = nodes.common_ksampler(model, settings.seed, settings.steps, settings.cfg, settings.sampler,
                                settings.scheduler, positive, negative, {"samples": latent})[0]  # fmt: skip
    return out["samples"]


def decode(latent: torch.Tensor) -> torch.Tensor:
    """returns: [F, H, W, 3] 0..1"""
    return nodes.VAEDecode().decode(vae(), {"samples": latent})[0].float()


def empty_latent(length: int = LENGTH, size: int = SIZE) -> torch.Tensor:
    return torch.zeros(1, 16, (length + 3) // 4, size // 8, size // 8)


def text_to_video(prompt: str, settings: Settings, model=None) -> torch.Tensor:
    """returns: [F, H, W, 3] 0..1"""
    model = video_model("t2v") if model is None else model
    return decode(sample(model, conditioning(prompt), conditioning(""), empty_latent(), settings))


def image_to_video(prompt: str, first: torch.Tensor, settings: Settings) -> torch.Tensor:
    """first: [1, H, W, 3] 0..1 -> [F, H, W, 3]"""
    from comfy_extras.nodes_wan import WanImageToVideo

    positive, negative, latent = WanImageToVideo.execute(
        conditioning(prompt), conditioning(""), vae(), SIZE, SIZE, LENGTH, 1, start_image=first).result  # fmt: skip
    return decode(sample(video_model("i2v"), positive, negative, latent["samples"], settings))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """dB, of pictures in 0..1"""
    return float(-10 * (a - b).square().mean().clamp(min=1e-12).log10())
