"""Position codes of interspatial attention: the same function of the same coordinates for pixels and for points.

S tokens of a frame   h w token grid   D channels   K frequencies an axis

Source: ISA4D (2505.15800), interspatial positional encoding: sinusoids of NDC coordinates, added to tokens before
queries, keys and values. Ours: the frequencies, and the rotary form, in which the same angles turn queries and keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST = math.pi / 2  # one half turn over [-1, 1]: no two places within the margin look alike


def token_centres(h: int, w: int, device=None) -> Tensor:
    """NDC of the middle of each token, on the plane of depth 0. returns: [h * w, 3], rows first"""
    y = 2 * (torch.arange(h, device=device) + 0.5) / h - 1
    x = 2 * (torch.arange(w, device=device) + 0.5) / w - 1
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy, torch.zeros_like(xx)], -1).view(h * w, 3)


def frequencies(count: int, h: int, w: int, device=None) -> Tensor:
    """Radians per NDC unit, geometric, up to the Nyquist frequency of the token grid. returns: [K]"""
    highest = max(math.pi * max(h, w) / 2, 2 * LOWEST)
    step = torch.arange(count, device=device, dtype=torch.float32) / max(count - 1, 1)
    return LOWEST * (highest / LOWEST) ** step


def angles(place: Tensor, count: int, h: int, w: int) -> Tensor:
    """place: [..., 3] -> [..., 3, K] float32"""
    return place.float()[..., None] * frequencies(count, h, w, place.device)


def additive(place: Tensor, channels: int, h: int, w: int) -> Tensor:
    """Sines and cosines of each axis in turn, zeros behind. place: [..., 3] -> [..., D]"""
    turned = angles(place, channels // 6, h, w)
    code = torch.cat([turned.sin(), turned.cos()], -1).flatten(-2)
    return torch.nn.functional.pad(code, (0, channels - code.shape[-1]))


def rotary(place: Tensor, channels: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `turn`: a third of the pairs for each axis, pairs left over do not turn.

    place: [..., 3]; channels: of one head, even    returns: two of [..., D / 2]
    """
    turned = angles(place, channels // 6, h, w).flatten(-2)
    turned = torch.nn.functional.pad(turned, (0, channels // 2 - turned.shape[-1]))
    return turned.cos(), turned.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels (i, i + D / 2). x: [B, N, H, D]; cos, sin: [B or 1, N, D / 2]"""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
