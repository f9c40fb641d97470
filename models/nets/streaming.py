"""Clips of any length through the video VAE in chunks: what comes out equals one pass over all, memory stays bounded.

B batch   T frames   L latent frames   H W rows and columns      k latent frames of a chunk

A chunk of k latent frames is 4k frames, the first of a clip 4k - 3: its first latent frame holds one frame alone.
Between chunks each causal layer keeps the last frames it has seen (`causal_conv.Stream`), nothing else is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .causal_conv import Stream
from .video_vae import TIME, VideoVAE


def latent_frames(frames: int) -> int:
    """Latent frames of a clip; the last one is filled up by repeating the last frame."""
    return (frames + 2 * TIME - 2) // TIME


def pixel_frames(latents: int) -> int:
    """Frames that so many latent frames decode to."""
    return max(0, TIME * (latents - 1) + 1)


def spans(latents: int, chunk: int) -> list[tuple[int, int]]:
    """The latent frames of each chunk, [first, behind the last).

    raises: ValueError for a chunk of no frames
    """
    if chunk < 1:
        raise ValueError(f"Video VAE: chunks of {chunk} latent frames. Accepted: 1 and more.")
    return [(start, min(start + chunk, latents)) for start in range(0, latents, chunk)]


def as_it_is(frames: Tensor) -> Tensor:
    """Of videos that are in -1..1 already."""
    return frames


def encode_chunks(
    vae: VideoVAE, video: Tensor, chunk: int = 2, prepare: Callable[[Tensor], Tensor] = as_it_is
) -> Iterator[Tensor]:
    """video: [B, 3, T, H, W], on any device, T of any number    prepare: brings the frames of a chunk to -1..1

    returns: latents [B, 16, k, H/8, W/8] where the VAE is, the last chunk as long as what is left
    """
    weight = vae.decoder[0].conv.weight
    stream, total = Stream(), video.shape[2]
    for start, stop in spans(latent_frames(total), chunk):
        first, behind = pixel_frames(start), pixel_frames(stop)
        part = prepare(video[:, :, first:behind].to(weight))
        if behind > total:
            part = torch.cat([part, part[:, :, -1:].expand(-1, -1, behind - total, -1, -1)], 2)
        yield vae.encode(part, stream)


def decode_chunks(vae: VideoVAE, latent: Tensor, chunk: int = 2) -> Iterator[Tensor]:
    """latent: [B, 16, L, h, w], on any device

    returns: frames [B, 3, 4k, 8h, 8w] where the VAE is, of the first chunk 4k - 3
    """
    weight, stream = vae.decoder[0].conv.weight, Stream()
    for start, stop in spans(latent.shape[2], chunk):
        yield vae.decode(latent[:, :, start:stop].to(weight), stream)
