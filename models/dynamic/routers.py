"""The routers of one block: small layers whose logit above 0 (probability above one half) means "compute".

DyDiT, arXiv 2410.03456, section 3: a router over heads and one over groups of the MLP see the time embedding alone, a
router over tokens sees the residual stream. DyFLUX (arXiv 2504.06803) has the last one, and shows it text and time too.
"""

# B batch   N tokens   M text tokens   C width   S noise levels   O outputs of a layer

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5  # of the norm in DyFLUX's selector


@dataclass(frozen=True, eq=False)
class Affine:
    """weight: [O, C]    bias: [O]"""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """In float32, whatever the model runs in: rounding would make ties. x: [..., C] -> [..., O]"""
        return F.linear(x.float(), self.weight, self.bias)

    def to(self, device: torch.device) -> Affine:
        return Affine(self.weight.to(device, torch.float32), self.bias.to(device, torch.float32))


@dataclass(frozen=True, eq=False)
class TokenHead:
    """DyDiT's token router: two layers on the residual stream after attention."""

    first: Affine
    second: Affine

    def logits(self, x: Tensor) -> Tensor:
        """x: [B, N, C] -> [B, N]"""
        return self.second(self.first(x).relu())[..., 0]

    def to(self, device: torch.device) -> TokenHead:
        return TokenHead(self.first.to(device), self.second.to(device))


@dataclass(frozen=True, eq=False)
class TokenSelector:
    """DyFLUX's token router: image token and mean text token, both normed with one norm and moved by the time.

    time: [C] -> shift, scale of the image, shift, scale of the text    norm: per channel    router: [C] -> logit
    """

    time: Affine
    norm: Affine
    router: Affine

    def logits(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        """image: [B, N, C]   text: [B, M, C]   vec: [B, C] of time and pooled text -> [B, N]"""
        shift, scale, text_shift, text_scale = self.time(F.silu(vec.float()))[:, None].chunk(4, -1)
        words = (self._normed(text) * (1 + text_scale) + text_shift).mean(1, keepdim=True)
        return self.router(self._normed(image) * (1 + scale) + shift + words)[..., 0]

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], self.norm.weight, self.norm.bias, EPS)

    def to(self, device: torch.device) -> TokenSelector:
        return TokenSelector(self.time.to(device), self.norm.to(device), self.router.to(device))


@dataclass(frozen=True, eq=False)
class BlockRouter:
    """What a file has for one block; None where it has nothing, and everything is computed then.

    heads: all but the first head    groups: all but the first MLP group
    """

    heads: Affine | None = None
    groups: Affine | None = None
    tokens: TokenHead | TokenSelector | None = None

    def to(self, device: torch.device) -> BlockRouter:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return BlockRouter(**{name: part and part.to(device) for name, part in parts.items()})


def kept(router: Affine | None, e: Tensor) -> list[tuple[int, ...] | None]:
    """Which heads, or groups, are computed at each noise level; None for all of them.

    e: [S, C] time embeddings. Reads the result back, so ask for all levels of a run at once.
    """
    if router is None:
        return [None] * len(e)
    on = (router(e) > 0).tolist()
    return [None if all(row) else (0, *(i for i, computed in enumerate(row, 1) if computed)) for row in on]
