"""What each token of a video listens to: the loudest body point in one layer of an interspatial adapter."""

# F latent frames   h w token grid   S = h w tokens of a frame   M points   H heads   D channels of a head

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control.tokens import BodyTokens
from ..forward import Branch
from ..layout import Grid
from ..nets.interspatial_attention import Attend, attend
from ..nets.position_code import token_centres

NEAR = 1.5  # tokens: a point is where the token is


@dataclass(frozen=True)
class Heard:
    """loudest: [F, S] index of a point    share: [F, S] of the attention that it gets, mean over heads
    tokens: the body's    grid: F h w
    """

    loudest: Tensor
    share: Tensor
    tokens: BodyTokens
    grid: Grid

    def distances(self, frame: int) -> Tensor:
        """From the middle of each token to each point, in tokens; infinite for points that are not usable.

        returns: [S, M]
        """
        _, h, w = self.grid
        scale = torch.tensor([w, h]) / 2
        away = torch.cdist(token_centres(h, w)[:, :2] * scale, self.tokens.place[frame, :, :2] * scale)
        return away.masked_fill(~self.tokens.usable[frame], float("inf"))

    def judged(self) -> Judgement:
        """Over the tokens that have a point within NEAR."""
        on_body, right, chance = 0, 0, 0.0
        for frame in range(self.grid[0]):
            near = self.distances(frame) <= NEAR
            body = near.any(1)
            on_body += int(body.sum())
            right += int(near.gather(1, self.loudest[frame][:, None])[body].sum())
            chance += float(near[body].sum() / self.tokens.usable[frame].sum().clamp(min=1))
        count = max(on_body, 1)
        return Judgement(on_body, right / count, chance / count)


@dataclass(frozen=True)
class Judgement:
    """on_body: tokens with a point near them    right: share of them whose loudest point is near
    chance: that share for a token that picks a point at random
    """

    on_body: int
    right: float
    chance: float


@dataclass
class PointListener:
    """`adapter_visit.Listener` of the positive prompt's first row. layer: number of a block"""

    layer: int
    heard: Heard | None = None
    _tokens: BodyTokens | None = None
    _grid: Grid = (0, 0, 0)
    _row: int | None = None

    def begin(self, tokens: BodyTokens, grid: Grid, branches: Sequence[Branch]) -> None:
        self._tokens, self._grid = tokens, grid
        self._row = next((branch.rows.start for branch in branches if branch.cond == 0), None)

    def ear(self, layer: int, row: int) -> Attend | None:
        return self._listening if (layer, row) == (self.layer, self._row) else None

    def _listening(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Pixels ask points where a bias per key is given; the other attentions of the layer pass."""
        if bias is not None:
            found = [loudest(*one) for one in zip(q, k, bias[:, 0], strict=True)]
            self.heard = Heard(*(torch.stack(x).cpu() for x in zip(*found, strict=True)), self._tokens, self._grid)
        return attend(q, k, v, bias)


def loudest(q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Of one frame. q: [S, H, D]; k: [M, H, D]; bias: [1, M]    returns: index [S], share of the attention [S]"""
    score = torch.einsum("shd,mhd->hsm", q.float(), k.float()) * q.shape[-1] ** -0.5
    share, index = (score + bias.float()).softmax(-1).mean(0).max(-1)
    return index, share
