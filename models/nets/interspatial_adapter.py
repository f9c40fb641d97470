"""Interspatial attention as an adapter beside the blocks of another video transformer.

B clips   F latent frames   S tokens of a frame   D host width   V adapter width   M points

Behind chosen blocks of the host the video tokens are brought to the adapter's width, look at the body's points, and get
what they saw added. The last projection begins at zero: an adapter that has learned nothing changes nothing.

Source: ISA4D (2505.15800) for the mechanism; the adapter form is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from .interspatial_attention import POSITIONS, Attend, InterspatialAttention, Places, attend, places_of
from .interspatial_dit import feed_forward, plain_norm, sinusoidal_time
from .point_tokens import Points, PointsOverTime, PointTokenizer


@dataclass(frozen=True)
class AdapterConfig:
    """family: name of the host's family    host_width: D    layers: numbers of the host's blocks, in order of execution
    width, heads: of the adapter    identity: channels of the reference at each point, 0 for none
    position, depth_mode, symmetric: as in `dit_config.DiTConfig`
    temporal_stride: pixel frames a latent frame of the host

    raises: ValueError for what cannot be
    """

    family: str
    host_width: int
    layers: tuple[int, ...]
    width: int = 512
    heads: int = 8
    identity: int = 0
    position: str = "rotary"
    depth_mode: str = "linear"
    symmetric: bool = True
    temporal_stride: int = 4

    def __post_init__(self) -> None:
        if self.position not in POSITIONS or self.width % self.heads or not self.layers or min(self.layers) < 0:
            raise ValueError(f"Interspatial adapter: position {self.position!r}, width {self.width}, {self.heads} "
                             f"heads, layers {list(self.layers)}. Accepted: a position of {', '.join(POSITIONS)}, a "
                             "width that the heads divide, and layers from 0 on.")  # fmt: skip

    @staticmethod
    def of(values: Mapping) -> AdapterConfig:
        """raises: ValueError for settings that this version does not know, or that are missing"""
        known = {field.name for field in fields(AdapterConfig)}
        missing = {"family", "host_width", "layers"} - set(values)
        if set(values) - known or missing:
            raise ValueError(f"Interspatial adapter: settings {sorted(set(values) - known)} are not known to this "
                             f"version, {sorted(missing)} are missing.")  # fmt: skip
        return AdapterConfig(**{**values, "layers": tuple(values["layers"])})

    def told(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Fixed:
    """What is the same in every step of a run: tokens of the points before the noise level is told, and their places.

    y: [B, F, M, V]    folded: places as each layer takes them, by layer    usable: [B, F, M]
    """

    y: Tensor
    places: Places
    folded: Mapping[int, tuple]
    usable: Tensor


class AdapterBlock(nn.Module):
    def __init__(self, config: AdapterConfig, operations=nn, **factory):
        super().__init__()
        V, more = config.width, {"operations": operations, **factory}
        self.down = operations.Linear(config.host_width, V, **factory)
        self.time = operations.Linear(256, 2 * V, **factory)
        self.points_over_time = PointsOverTime(V, config.heads, **more)
        self.interspatial = InterspatialAttention(V, config.heads, config.symmetric, config.host_width, **more)
        self.feed_points = feed_forward(V, 4 * V, **more)

    def start(self, kind: str) -> None:
        self.interspatial.start(kind)
        for layer in (self.interspatial.render.o, self.time):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, y: Tensor, time: Tensor, places: Places, folded: tuple | None,
                numbers: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x: [B, F S, D]; y: [B, F, M, V]; time: [B, 256]    returns: what the video gets [B, F S, D], new y"""
        B, F, M, V = y.shape
        y = y + self.points_over_time(plain_norm(y), numbers, attend)
        shift, scale = self.time(time.to(y.dtype))[:, None].chunk(2, -1)
        pixels = plain_norm(self.down(plain_norm(x).to(y.dtype))) * (1 + scale) + shift
        seen, told = self.interspatial(pixels.reshape(B * F, -1, V), plain_norm(y).view(B * F, M, V), places, folded,
                                       attend)  # fmt: skip
        y = y if told is None else y + told.view(B, F, M, V)
        y = y + self.feed_points(plain_norm(y))
        return seen.reshape(B, -1, seen.shape[-1]), y


class InterspatialAdapter(nn.Module):
    def __init__(self, config: AdapterConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        self.config, more = config, {"operations": operations, "device": device, "dtype": dtype}
        self.points = PointTokenizer(config.width, config.identity, **more)
        self.blocks = nn.ModuleDict({str(layer): AdapterBlock(config, **more) for layer in config.layers})

    def start(self) -> None:
        """Initial weights of a training: without effect."""
        self.points.start()
        for block in self.blocks.values():
            block.start(self.config.position)

    def fixed(self, points: Points, h: int, w: int, dtype: torch.dtype = torch.float32) -> Fixed:
        """Compute once per run. points: of the whole clip or a window    h, w: the host's token grid"""
        c = self.config
        y = torch.where(points.usable[..., None], self.points(points, dtype), 0.0)
        places = places_of(c.position, points.place.flatten(0, 1), points.usable.flatten(0, 1), h, w, c.width, c.heads)
        folded = {layer: self.blocks[str(layer)].interspatial.fold(places) for layer in c.layers}
        return Fixed(y, places, folded, points.usable)

    def visit(self, layer: int, x: Tensor, y: Tensor, timestep: Tensor, fixed: Fixed, numbers: Tensor,
              attend: Attend = attend) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One block. x: [B, F S, D] the video's tokens behind host block `layer`; y: of the layer before, or fixed.y

        timestep: [B], 0..1000; numbers: [F] of the latent frames
        returns: what to add to x [B, F S, D], and y for the next layer
        """
        time = sinusoidal_time(timestep)
        return self.blocks[str(layer)](x, y, time, fixed.places, fixed.folded[layer], numbers, attend)
