"""Which pixel frames a latent frame holds, for causal video VAEs: the first frame alone, then `stride` at a time.

T pixel frames   F latent frames   S sub-frames
"""

from __future__ import annotations

import torch
from torch import Tensor

SUB_FRAMES = 4  # pixel frames of a latent frame that a token tells of


def latent_frames(frames: int, stride: int) -> int:
    """Latent frames of a clip; frames behind the last whole group do not count. stride: pixel frames per latent one"""
    return (frames - 1) // stride + 1


def sub_frames(count: int, stride: int, sub: int = SUB_FRAMES) -> Tensor:
    """Pixel frames that stand for each latent frame, evenly spread over it, its last frame always the last of them.

    A causal VAE keeps most of a group's last frame, so places are those of the last sub-frame. The first latent frame
    repeats its one pixel frame.
    count: latent frames    returns: [F, S] int64
    """
    last = torch.arange(count) * stride
    back = torch.tensor([(sub - 1 - k) * stride // sub for k in range(sub)])
    return torch.where(torch.arange(count)[:, None] > 0, last[:, None] - back, 0)
