"""ComfyUI's Wan VAE run over a whole clip at once, for training.

Core runs the causal VAE in chunks of one, two, two ... frames with a feature cache, which is right for inference and
slow to train. Because every convolution is causal, the chunked result equals one pass over the clip with zeros put
before the first frame; only the temporal resamplers treat the first frame apart. Each 3-D convolution becomes one 2-D
convolution over the three time-shifted copies stacked on channels, which CPUs run several times faster in bfloat16.

B batch   T frames   x: [B*T, C, H, W] channels-last, frames of a clip in a row
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shifted(x: Tensor, frames: int, taps: int) -> Tensor:
    """Each frame beside its `taps - 1` predecessors (zeros before the first).

    x: [B*T, C, H, W] -> [B*T, taps*C, H, W]
    """
    clip = x.unflatten(0, (-1, frames))
    views = [
        F.pad(clip[:, : max(frames - lag, 0)], (0, 0, 0, 0, 0, 0, min(lag, frames), 0))
        for lag in range(taps - 1, 0, -1)
    ]
    return torch.cat([*views, clip], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def convolve(conv: nn.Module, x: Tensor, weight: Tensor, **how) -> Tensor:
    """Every convolution of the network passes here, so that its initialisation can be fitted to data."""
    return F.conv2d(x, weight, conv.bias, **how)


def causal_conv(conv: nn.Conv3d, x: Tensor, frames: int) -> Tensor:
    """A causal 3-D convolution with stride 1."""
    taps = conv.weight.shape[2]
    weight = conv.weight.transpose(1, 2).flatten(1, 2)
    x = shifted(x, frames, taps) if taps > 1 else x
    return convolve(conv, x, weight.contiguous(memory_format=torch.channels_last), padding=conv.padding[1:])


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    scale = (x.float().square().sum(1, keepdim=True) + 1e-12).rsqrt() * norm.scale
    return F.silu(x.float() * scale * norm.gamma[None, :, 0]).to(x.dtype)


def residual_block(block: nn.Module, x: Tensor, frames: int) -> Tensor:
    norm1, _, conv1, norm2, _, _, conv2 = block.residual
    y = causal_conv(conv1, norm_silu(norm1, x), frames)
    y = causal_conv(conv2, norm_silu(norm2, y), frames)
    shortcut = x if isinstance(block.shortcut, nn.Identity) else causal_conv(block.shortcut, x, frames)
    return y + shortcut


def attention_block(block: nn.Module, x: Tensor) -> Tensor:
    scale = (x.float().square().sum(1, keepdim=True) + 1e-12).rsqrt() * block.norm.scale
    y = (x.float() * scale * block.norm.gamma[None]).to(x.dtype)
    q, k, v = block.to_qkv(y).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
    y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
    return x + block.proj(y)


def resample(layer: nn.Module, x: Tensor, frames: int) -> tuple[Tensor, int]:
    if layer.mode == "upsample3d" and frames > 1:
        clip = x.unflatten(0, (-1, frames))
        # the first frame is passed on as it is and is not seen by the time convolution
        rest = clip[:, 1:].flatten(0, 1)
        both = causal_conv(layer.time_conv, rest, frames - 1).unflatten(1, (2, -1))
        both = both.unflatten(0, (-1, frames - 1)).flatten(1, 2)  # each frame becomes two neighbours
        x = torch.cat([clip[:, :1], both], 1).flatten(0, 1)
        frames = 2 * frames - 1
    if layer.mode.startswith("downsample"):
        x = F.pad(x, (0, 1, 0, 1))
        x = convolve(layer.resample[1], x, layer.resample[1].weight, stride=2)
    else:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        x = convolve(layer.resample[1], x, layer.resample[1].weight, padding=1)
    if layer.mode == "downsample3d" and frames > 1:
        clip = x.unflatten(0, (-1, frames))
        weight = layer.time_conv.weight.transpose(1, 2).flatten(1, 2)
        triples = torch.cat([clip[:, 0:-1:2], clip[:, 1::2], clip[:, 2::2]], 2).flatten(0, 1)
        half = convolve(layer.time_conv, triples, weight)
        frames = (frames + 1) // 2
        x = torch.cat([clip[:, :1], half.unflatten(0, (-1, frames - 1))], 1).flatten(0, 1)
    return x, frames


def _stages(layers: nn.Module, x: Tensor, frames: int) -> tuple[Tensor, int]:
    for layer in layers:
        if hasattr(layer, "residual"):
            x = residual_block(layer, x, frames)
        elif hasattr(layer, "to_qkv"):
            x = attention_block(layer, x)
        else:
            x, frames = resample(layer, x, frames)
    return x, frames


def _coder(coder: nn.Module, stages: list[nn.Module], x: Tensor, frames: int) -> tuple[Tensor, int]:
    x = causal_conv(coder.conv1, x, frames)
    for stage in stages:
        x, frames = _stages(stage, x, frames)
    return causal_conv(coder.head[2], norm_silu(coder.head[0], x), frames), frames


def encode(vae: nn.Module, video: Tensor) -> tuple[Tensor, Tensor]:
    """video: [B, 3, T, H, W] in -1..1, T = 4n + 1 -> mean and log-variance, each [B, 16, n + 1, H/8, W/8]"""
    frames = video.shape[2]
    x = video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    x, frames = _coder(vae.encoder, [vae.encoder.downsamples, vae.encoder.middle], x, frames)
    x = causal_conv(vae.conv1, x, frames).unflatten(0, (-1, frames)).transpose(1, 2)
    mean, log_variance = x.chunk(2, 1)
    return mean, log_variance


def decode(vae: nn.Module, latent: Tensor) -> Tensor:
    """latent: [B, 16, T, h, w] -> video [B, 3, 4(T-1)+1, 8h, 8w]"""
    frames = latent.shape[2]
    x = latent.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    x = causal_conv(vae.conv2, x, frames)
    x, frames = _coder(vae.decoder, [vae.decoder.middle, vae.decoder.upsamples], x, frames)
    return x.unflatten(0, (-1, frames)).transpose(1, 2)
