"""Clips through a VAE in chunks that give exactly what the whole gives: ours, and core's Wan VAE with its own cache.

B batch   T frames   L latent frames   H W rows and columns

Frames and latents go to the device a chunk at a time and leave it as they come, so device memory does not grow with
the length of the clip. Other VAEs have no cache between chunks: core's own encode and decode do those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import comfy.model_management
import torch
from comfy.ldm.wan.vae import WanVAE, count_cache_layers
from torch import Tensor

from ..nets.streaming import decode_chunks, encode_chunks, pixel_frames, spans
from ..nets.video_vae import TIME
from .video_vae import CHUNK, ChunkedVAE

PIECE = 2  # Wan: frames, and latent frames, of a call; core's cache expects two and no fewer

Tick = Callable[[int], None]  # gets the number of latent frames done so far; what it raises ends the work


def why_not_stream(vae) -> str | None:
    """A sentence where this VAE cannot be run in exact chunks."""
    model = vae.first_stage_model
    if isinstance(model, ChunkedVAE) or type(model) is WanVAE:
        return None
    return (f"{type(model).__name__} keeps no cache between chunks, so it ran whole, by ComfyUI's own code; "
            "memory grows with the length")  # fmt: skip


def encode_video(vae, images: Tensor, chunk: int, tick: Tick) -> Tensor:
    """images: [T, H, W, C] 0..1 -> latent as core's VAE Encode makes it, [1, 16, L, h, w] for video VAEs

    chunk: latent frames at a time, for our VAE; Wan has a chunk of its own
    raises: ValueError for chunks of no frames
    """
    model = vae.first_stage_model
    if why_not_stream(vae):
        return vae.encode(images)
    pixels = vae.vae_encode_crop_pixels(images).movedim(-1, 0).unsqueeze(0)
    ours = isinstance(model, ChunkedVAE)
    load(vae, vae.memory_used_encode(pixels.shape, vae.vae_dtype) * (max(1, chunk / CHUNK) if ours else 1))
    parts = encode_chunks(model.net, pixels, chunk, vae.process_input) if ours else wan_encode(vae, pixels)
    with comfy.model_management.cuda_device_context(vae.device):
        return torch.cat(list(moved(vae, parts, tick, 1)), 2)


def decode_video(vae, latent: Tensor, chunk: int, tick: Tick) -> Tensor:
    """latent: [B, 16, L, h, w] -> images [B * T, H, W, 3] 0..1, clips in a row; other VAEs as core's VAE Decode

    raises: ValueError for chunks of no frames
    """
    model = vae.first_stage_model
    if why_not_stream(vae):
        images = vae.decode(latent)
        return images.flatten(0, 1) if images.ndim == 5 else images
    ours = isinstance(model, ChunkedVAE)
    load(vae, vae.memory_used_decode(latent.shape, vae.vae_dtype) * (max(1, chunk / CHUNK) if ours else 1))
    images, done = None, 0
    parts = (part for clip in latent.split(1)
             for part in (decode_chunks(model.net, clip, chunk) if ours else wan_decode(vae, clip)))  # fmt: skip
    with comfy.model_management.cuda_device_context(vae.device):
        for frames in moved(vae, parts, tick, TIME):
            frames = vae.process_output(frames)[0].movedim(0, -1)
            if images is None:
                images = frames.new_empty(len(latent) * pixel_frames(latent.shape[2]), *frames.shape[1:])
            images[done : done + len(frames)] = frames
            done += len(frames)
    return images


def load(vae, memory: float) -> None:
    """Bring the net to its device, with so many bytes free there."""
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory, force_full_load=vae.disable_offload)


def moved(vae, parts: Iterable[Tensor], tick: Tick, frames: int) -> Iterator[Tensor]:
    """Each part on the output device as it comes. frames: of a part, for each latent frame"""
    done = 0
    for part in parts:
        done += -(-part.shape[2] // frames)
        tick(done)
        yield part.to(vae.output_device, vae.vae_output_dtype())


def wan_encode(vae, pixels: Tensor) -> Iterator[Tensor]:
    """Core's WanVAE.encode, piece by piece. Frames beyond the last 4n + 1 are dropped, as core does.

    pixels: [1, 3, T, H, W] 0..1 -> latents [1, 16, k, h, w]
    """
    model = vae.first_stage_model
    total = pixels.shape[2] - (pixels.shape[2] - 1) % TIME
    pieces = [(0, 1), *((f, f + PIECE) for f in range(1, total, PIECE))]
    cache = [None] * count_cache_layers(model.encoder) if len(pieces) > 1 else None
    for start, stop in pieces:
        part = vae.process_input(pixels[:, :, start:stop].to(vae.device, vae.vae_dtype))
        out = model.encoder(part, feat_cache=cache, feat_idx=[0], final=stop == total and start > 0)
        if out is not None:  # deeper layers wait until they have two frames
            yield model.conv1(out).chunk(2, dim=1)[0]


def wan_decode(vae, latent: Tensor) -> Iterator[Tensor]:
    """Core's WanVAE.decode, piece by piece. latent: [1, 16, L, h, w] -> frames [1, 3, k, 8h, 8w] in -1..1"""
    model, L = vae.first_stage_model, latent.shape[2]
    pieces = [(0, 1), *((start + 1, stop + 1) for start, stop in spans(L - 1, PIECE))]
    cache = [None] * count_cache_layers(model.decoder) if L > 1 else None
    for start, stop in pieces:
        part = model.conv2(latent[:, :, start:stop].to(vae.device, vae.vae_dtype))
        yield from model.decoder(part, feat_cache=cache, feat_idx=[0])
