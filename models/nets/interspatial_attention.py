"""Symmetric interspatial attention: pixels ask the body's points, points ask the pixels, within each latent frame.

B frames of all clips   S pixel tokens   M points   H heads   D channels of a head   W = H D

Source: ISA4D (2505.15800). Both directions start from the same state; position codes are added to queries, keys and
values ("additive", the paper's form), or turn queries and keys ("rotary", ours). Projections of additive codes are
linear in them and the same in every step, so they are computed once and added: what is left is the one attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import position_code as code

POSITIONS = ("rotary", "additive", "none")
CONSTANT = 1.5  # beside contents with a standard deviation of 0.3
Attend = Callable[..., Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention by torch. q: [B, N, H, D]; k, v: [B, M, H, D]; bias: [B, 1, 1, M]    returns: [B, N, H, D]"""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    bias = None if bias is None else bias.to(q.dtype)
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


@dataclass(frozen=True)
class Places:
    """Where pixels and points are, in a form that all layers share.

    pixels: [1, S, 3] or codes of it    points: [B, M, 3] or codes of it; see `places_of`
    usable: [B, M] bool
    """

    kind: str
    pixels: Tensor | tuple[Tensor, Tensor] | None
    points: Tensor | tuple[Tensor, Tensor] | None
    usable: Tensor

    @property
    def bias(self) -> Tensor:
        """Per key. Finite in half precision too, because a frame may have no point at all. returns: [B, 1, 1, M]"""
        return torch.where(self.usable, 0.0, -1e4)[:, None, None]

    @property
    def any(self) -> Tensor:
        """1 for frames that have a point. returns: [B, 1, 1]"""
        return self.usable.any(-1)[:, None, None]


def places_of(kind: str, place: Tensor, usable: Tensor, h: int, w: int, channels: int, heads: int) -> Places:
    """Position codes of a frame grid and its points. place: [B, M, 3]; usable: [B, M]"""
    grid = code.token_centres(h, w, place.device)[None]
    if kind == "additive":
        return Places(kind, code.additive(grid, channels, h, w), code.additive(place, channels, h, w), usable)
    if kind == "rotary":
        each = channels // heads
        return Places(kind, code.rotary(grid, each, h, w), code.rotary(place, each, h, w), usable)
    if kind == "none":
        return Places(kind, None, None, usable)
    raise ValueError(f"Position code {kind!r} is not known. Accepted: {', '.join(POSITIONS)}.")


class Direction(nn.Module):
    """One direction: `asking` tokens look at `giving` tokens."""

    def __init__(self, width: int, heads: int, out: int, operations=nn, **factory):
        super().__init__()
        self.heads = heads
        self.q = operations.Linear(width, width, **factory)
        self.k = operations.Linear(width, width, **factory)
        self.v = operations.Linear(width, width, **factory)
        self.o = operations.Linear(width, out, **factory)
        self.q_norm = operations.RMSNorm(width // heads, eps=1e-6, **factory)
        self.k_norm = operations.RMSNorm(width // heads, eps=1e-6, **factory)

    def start(self, kind: str) -> None:
        """Initial weights with which tokens look at what is near them in the picture, at any depth.

        Then training does not have to find the position code first. Rotary: queries and keys share a constant part in
        the pairs of x and y, so that their product is a sum of cosines of the distance. Additive: queries and keys
        begin as the same map, which keeps the products of codes.
        """
        if kind == "rotary":
            head = self.q.bias.numel() // self.heads
            plane = 2 * (head // 6)  # pairs that turn with x and y
            for layer in (self.q, self.k):
                bias = torch.zeros(self.heads, head)
                bias[:, :plane] = CONSTANT
                with torch.no_grad():
                    layer.bias.copy_(bias.flatten())
                    layer.weight.mul_(0.5)
        elif kind == "additive":
            with torch.no_grad():
                self.k.weight.copy_(self.q.weight)

    def moved(self, asking: Tensor, giving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What additive codes add to queries, keys and values: the projections without their offsets.

        Through the layers themselves: a host that keeps weights elsewhere brings them when a layer is called.
        """
        pairs = ((self.q, asking), (self.k, giving), (self.v, giving))
        places = [(layer, place.to(layer.weight.dtype)) for layer, place in pairs]
        return tuple(layer(place) - layer(torch.zeros_like(place[:1, :1])) for layer, place in places)

    def forward(self, asking: Tensor, giving: Tensor, places: tuple, bias: Tensor | None, attend: Attend) -> Tensor:
        """asking: [B, N, W]; giving: [B, M, W]; places: ("rotary", codes, codes), ("additive", q, k, v) or ("none",)"""
        q, k, v = self.q(asking), self.k(giving), self.v(giving)
        if places[0] == "additive":
            q, k, v = (x + moved.to(x.dtype) for x, moved in zip((q, k, v), places[1:], strict=True))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if places[0] == "rotary":
            q, k = code.turn(q, *places[1]), code.turn(k, *places[2])
        return self.o(attend(q, k, v, bias).flatten(-2))


class InterspatialAttention(nn.Module):
    """Both directions. symmetric False leaves the points as they are."""

    def __init__(
        self, width: int, heads: int, symmetric: bool = True, out: int | None = None, operations=nn, **factory
    ):
        super().__init__()
        self.render = Direction(width, heads, out or width, operations, **factory)  # pixels ask points
        self.rebuild = Direction(width, heads, width, operations, **factory) if symmetric else None

    def start(self, kind: str) -> None:
        for direction in (self.render, self.rebuild):
            if direction is not None:
                direction.start(kind)

    def fold(self, places: Places) -> tuple[tuple, tuple | None]:
        """The places as the two directions take them; for additive codes, the projections of this layer."""
        if places.kind == "none":
            return ("none",), ("none",)
        if places.kind == "rotary":
            return ("rotary", places.pixels, places.points), ("rotary", places.points, places.pixels)
        back = self.rebuild and ("additive", *self.rebuild.moved(places.points, places.pixels))
        return ("additive", *self.render.moved(places.pixels, places.points)), back

    def forward(
        self, pixels: Tensor, points: Tensor, places: Places, folded: tuple | None = None, attend: Attend = attend
    ) -> tuple[Tensor, Tensor | None]:
        """pixels: [B, S, W]; points: [B, M, W]    folded: of `fold`, when it was kept

        returns: what each side gets, [B, S, out] (zero in frames without a point) and [B, M, W] or None
        """
        there, back = folded or self.fold(places)
        rendered = self.render(pixels, points, there, places.bias, attend)
        rendered = torch.where(places.any, rendered, 0.0)
        if self.rebuild is None:
            return rendered, None
        return rendered, self.rebuild(points, pixels, back, None, attend)
