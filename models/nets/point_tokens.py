"""Body points as tokens, and attention of each point over time.

B clips   F latent frames   M points   S sub-frames   W width of a point token   C channels of an identity feature

Source: ISA4D (2505.15800), 3D tokenizer: a small network on sinusoids of world positions. Ours: the positions of four
sub-frames together, and small tables for person and body part, all zero at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..control.body import NO_PART
from ..control.time_folding import SUB_FRAMES
from ..control.tokens import PEOPLE, BodyTokens
from .interspatial_attention import Attend

OCTAVES = 10  # 2^9 pi radians a metre: 2 mm


@dataclass(frozen=True)
class Points:
    """A batch of BodyTokens: place [B, F, M, 3], usable [B, F, M], content [B, F, M, S, 3], person and part [B, M],
    identity [B, M, C + 1] or None."""

    place: Tensor
    usable: Tensor
    content: Tensor
    person: Tensor
    part: Tensor
    identity: Tensor | None = None

    @staticmethod
    def of(tokens: BodyTokens) -> Points:
        """A batch of one."""
        found = (tokens.place, tokens.usable, tokens.content, tokens.person, tokens.part)
        return Points(*(x[None] for x in found), None if tokens.identity is None else tokens.identity[None])


def sinusoids(position: Tensor) -> Tensor:
    """Positions and their sines and cosines in octaves. position: [..., S, 3] -> [..., S * 63]"""
    turned = position.float()[..., None] * (math.pi * 2.0 ** torch.arange(OCTAVES, device=position.device))
    return torch.cat([position.float(), turned.sin().flatten(-2), turned.cos().flatten(-2)], -1).flatten(-2)


class PointTokenizer(nn.Module):
    """identity: channels of the identity feature (without the flag), 0 for none"""

    def __init__(self, width: int, identity: int = 0, operations=nn, **factory):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(SUB_FRAMES * (3 + 6 * OCTAVES), width, **factory), nn.SiLU(),
            operations.Linear(width, width, **factory),
        )  # fmt: skip
        self.person = operations.Embedding(PEOPLE, width, **factory)
        self.part = operations.Embedding(NO_PART + 1, width, **factory)
        self.identity = operations.Linear(identity + 1, width, **factory) if identity else None

    def start(self) -> None:
        """Tables begin at zero, so that points differ by their places alone."""
        for table in (self.person, self.part):
            nn.init.zeros_(table.weight)

    def forward(self, points: Points, dtype: torch.dtype) -> Tensor:
        """returns: [B, F, M, W]"""
        content = torch.where(points.usable[..., None, None], points.content, 0.0)
        y = self.mlp(sinusoids(content).to(dtype))
        more = self.person(points.person).to(dtype) + self.part(points.part).to(dtype)
        if self.identity is not None and points.identity is not None:
            more = more + self.identity(points.identity.to(dtype))
        return y + more[:, None]


class PointsOverTime(nn.Module):
    """Attention of each point to itself in the other latent frames.

    Frames are told apart by sinusoids of their number, added to queries and keys through the input."""

    def __init__(self, width: int, heads: int, operations=nn, **factory):
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.o = operations.Linear(width, width, **factory)

    def forward(self, y: Tensor, frames: Tensor, attend: Attend) -> Tensor:
        """y: [B, F, M, W]; frames: [F] numbers of the latent frames    returns: [B, F, M, W]"""
        B, F, M, W = y.shape
        y = y + frame_code(frames, W)[:, None].to(y.dtype)
        q, k, v = self.qkv(y.transpose(1, 2).flatten(0, 1)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.o(attend(q, k, v, None).flatten(-2)).view(B, M, F, W).transpose(1, 2)


def frame_code(frames: Tensor, width: int) -> Tensor:
    """Sinusoids of frame numbers, wavelengths from 4 to 400 frames. frames: [F] -> [F, W]"""
    half = width // 2
    step = torch.arange(half, device=frames.device, dtype=torch.float32) / max(half - 1, 1)
    turned = frames.float()[:, None] * (math.pi / 2) * 0.01**step
    return nn.functional.pad(torch.cat([turned.sin(), turned.cos()], -1), (0, width - 2 * half))
