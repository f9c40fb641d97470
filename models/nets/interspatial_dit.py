"""The interspatial diffusion transformer: a video model made for bodies and cameras.

B clips   C latent channels   F latent frames   h w token grid   S = h w   W width   M points   V point width

Per block, after ISA4D (2505.15800, figure of the pipeline): attention within each frame, over time at each place, of
each point over time, interspatial attention both ways, then what the camera's rays and the reference picture say, then
the feed-forward layers. Attention over space and time is factorised, which is where its speed comes from. The paper
does not give sizes; the configurations are ours, and so are the rotary codes within a frame and over time.

Predicts noise - clip of x = (1 - s) clip + s noise, ComfyUI's sign; the paper predicts its negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import position_code as code
from .dit_config import DiTConfig
from .interspatial_attention import Attend, InterspatialAttention, attend, places_of
from .point_tokens import Points, PointsOverTime, PointTokenizer

RAY_CHANNELS = 24  # moment and direction of a ray, four sub-frames
LEAST_NOISE = 0.05  # of the division that makes a flow of a clip
INTERSPATIAL_GATE = 8
PARTS_OF_BLOCK = 12  # shift, scale and gate of spatial, temporal, interspatial attention and the feed-forward


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; keys and values from `context` when it is given."""

    def __init__(self, width: int, heads: int, context: int = 0, operations=nn, **factory):
        super().__init__()
        self.heads = heads
        self.q = operations.Linear(width, width, **factory)
        self.k = operations.Linear(context or width, width, **factory)
        self.v = operations.Linear(context or width, width, **factory)
        self.o = operations.Linear(width, width, **factory)
        self.q_norm = operations.RMSNorm(width // heads, eps=1e-6, **factory)
        self.k_norm = operations.RMSNorm(width // heads, eps=1e-6, **factory)

    def forward(self, x: Tensor, attend: Attend, rope: tuple | None = None, context: Tensor | None = None) -> Tensor:
        """x: [B, N, W]; context: [B, M, W']    returns: [B, N, W]"""
        given = x if context is None else context
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)) for layer, y in
                   ((self.q, x), (self.k, given), (self.v, given)))  # fmt: skip
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = code.turn(q, *rope), code.turn(k, *rope)
        return self.o(attend(q, k, v).flatten(-2))


def feed_forward(width: int, hidden: int, operations=nn, **factory) -> nn.Sequential:
    return nn.Sequential(operations.Linear(width, hidden, **factory), nn.GELU(approximate="tanh"),
                         operations.Linear(hidden, width, **factory))  # fmt: skip


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without weights; the modulation scales and shifts."""
    return nn.functional.layer_norm(x, x.shape[-1:])


@dataclass(frozen=True)
class Given:
    """What all blocks of a forward share.

    batch: B    places: of interspatial attention, None without points    space, time: rotary codes
    numbers: [F] of the latent frames    rays: [B F, S, W]    reference: [B, R, W]
    """

    batch: int
    places: object | None
    space: tuple
    time: tuple
    numbers: Tensor
    rays: Tensor | None
    reference: Tensor | None
    attend_space: Attend
    attend: Attend


class Block(nn.Module):
    def __init__(self, config: DiTConfig, operations=nn, **factory):
        super().__init__()
        W, V, H, more = config.width, config.points, config.heads, {"operations": operations, **factory}
        self.spatial = Attention(W, H, **more)
        self.temporal = Attention(W, H, **more)
        self.points_over_time = PointsOverTime(V, config.point_heads, **more) if config.over_time else None
        self.down = operations.Linear(W, V, **factory)
        self.interspatial = InterspatialAttention(V, config.point_heads, config.symmetric, W, **more)
        self.camera = Attention(W, H, W, **more) if config.camera else None
        self.reference = Attention(W, H, W, **more) if config.reference else None
        self.feed = feed_forward(W, int(config.feed * W), **more)
        self.feed_points = feed_forward(V, int(config.feed * V), **more)
        self.modulation = operations.Linear(W, PARTS_OF_BLOCK * W, **factory)

    def start(self, kind: str) -> None:
        """Branches begin without effect, by gates of the modulation or outputs of zero. The interspatial one is open:
        closed, it takes hundreds of steps to be found.
        """
        self.interspatial.start(kind)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.modulation.bias.view(PARTS_OF_BLOCK, -1)[INTERSPATIAL_GATE] = 1.0
        for branch in (self.camera, self.reference):
            if branch is not None:
                nn.init.zeros_(branch.o.weight)
                nn.init.zeros_(branch.o.bias)

    def forward(self, x: Tensor, y: Tensor, time: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """x: [B, F S, W] video; y: [B, F M, V] points; time: [B, W]    returns: both, as they came"""
        B, F = given.batch, len(given.numbers)
        parts = self.modulation(time)[:, None].chunk(PARTS_OF_BLOCK, -1)

        def shifted(part: int) -> Tensor:
            return plain_norm(x) * (1 + parts[3 * part + 1]) + parts[3 * part]

        def by_frame(x: Tensor) -> Tensor:
            return x.unflatten(1, (F, -1)).flatten(0, 1)

        def by_place(x: Tensor) -> Tensor:
            return x.unflatten(1, (F, -1)).transpose(1, 2).flatten(0, 1)

        def by_clip(x: Tensor) -> Tensor:
            return x.unflatten(0, (B, F)).flatten(1, 2)

        x = x + parts[2] * by_clip(self.spatial(by_frame(shifted(0)), given.attend_space, given.space))
        over = self.temporal(by_place(shifted(1)), given.attend, given.time)
        x = x + parts[5] * over.unflatten(0, (B, -1)).transpose(1, 2).flatten(1, 2)
        if given.places is not None:
            if self.points_over_time is not None:
                y = y + self.points_over_time(plain_norm(y).unflatten(1, (F, -1)), given.numbers,
                                              given.attend).flatten(1, 2)  # fmt: skip
            seen, told = self.interspatial(self.down(by_frame(shifted(2))), by_frame(plain_norm(y)), given.places,
                                           None, given.attend)  # fmt: skip
            x = x + parts[INTERSPATIAL_GATE] * by_clip(seen)
            y = y if told is None else y + by_clip(told)
            y = y + self.feed_points(plain_norm(y))
        if given.rays is not None:
            x = x + by_clip(self.camera(by_frame(plain_norm(x)), given.attend, given.space, given.rays))
        if given.reference is not None:
            x = x + self.reference(plain_norm(x), given.attend, None, given.reference)
        return x + parts[11] * self.feed(shifted(3)), y


class InterspatialDiT(nn.Module):
    """The model. `config` may be overridden for other sizes; see `forward` for what it takes."""

    def __init__(self, config: DiTConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        self.config, self.dtype, factory = config, dtype, {"device": device, "dtype": dtype}
        W, p, more = config.width, config.patch, {"operations": operations, "device": device, "dtype": dtype}
        self.patch_size = (1, p, p)
        self.patches = operations.Linear((config.channels + config.extra) * p * p, W, **factory)
        self.time = nn.Sequential(operations.Linear(256, W, **factory), nn.SiLU(),
                                  operations.Linear(W, W, **factory))  # fmt: skip
        self.points = PointTokenizer(config.points, config.identity, **more)
        self.points_time = operations.Linear(W, config.points, **factory)
        self.vector = operations.Linear(config.vector, W, **factory) if config.vector else None
        self.rays = operations.Linear(RAY_CHANNELS, W, **factory) if config.camera else None
        self.reference = operations.Linear(config.reference * p * p, W, **factory) if config.reference else None
        self.blocks = nn.ModuleList([Block(config, **more) for _ in range(config.depth)])
        self.head_modulation = operations.Linear(W, 2 * W, **factory)
        self.head = operations.Linear(W, config.channels * p * p, **factory)

    def start(self) -> None:
        """Initial weights of a training."""
        self.points.start()
        for block in self.blocks:
            block.start(self.config.position)
        for layer in (self.head_modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, timestep: Tensor, points: Points | None = None, rays: Tensor | None = None,
        reference: Tensor | None = None, extra: Tensor | None = None, vector: Tensor | None = None,
        frames: Tensor | None = None, attend_space: Attend = attend, attend: Attend = attend,
    ) -> Tensor:  # fmt: skip
        """x: [B, C, F, H, W] noisy latent, H and W multiples of the patch    timestep: [B], 0..1000
        points: None for nobody    rays: [B, 24, F, h, w] at the token grid    reference: [B, C, H', W'] latent
        extra: [B, E, F, H, W], zeros where None    vector: [B, n]    frames: [F] numbers of latent frames
        attend_space: attention within frames, which sparse methods may replace

        returns: [B, C, F, H, W]
        """
        B, _, F, height, width = x.shape
        p, c = self.config.patch, self.config
        h, w = height // p, width // p
        if c.extra:
            extra = x.new_zeros(B, c.extra, F, height, width) if extra is None else extra.to(x)
            x = torch.cat([x, extra], 1)
        tokens = self.patches(patched(x, p))
        time = self.time(sinusoidal_time(timestep).to(tokens.dtype))
        if self.vector is not None and vector is not None:
            time = time + self.vector(vector.to(tokens.dtype))
        numbers = torch.arange(F, device=x.device) if frames is None else frames
        given, y = self._given(points, rays, reference, time, numbers, (B, F, h, w), tokens.dtype, attend_space, attend)
        time = nn.functional.silu(time)
        for block in self.blocks:
            tokens, y = block(tokens, y, time, given)
        shift, scale = self.head_modulation(time)[:, None].chunk(2, -1)
        out = self.head(plain_norm(tokens) * (1 + scale) + shift)
        out = unpatched(out, (F, h, w), p)
        if c.predicts == "clip":
            sigma = (timestep.float() / 1000).clamp(min=LEAST_NOISE).view(-1, 1, 1, 1, 1)
            out = (x[:, : c.channels] - out) / sigma.to(out)
        return out

    def _given(self, points, rays, reference, time, numbers, size, dtype, attend_space, attend) -> tuple[Given, Tensor]:
        B, _, h, w = size
        c, device = self.config, time.device
        places, y = None, time.new_zeros(B, 0, c.points)
        if points is not None:
            places = places_of(c.position, points.place.flatten(0, 1), points.usable.flatten(0, 1), h, w, c.points,
                               c.point_heads)  # fmt: skip
            y = self.points(points, dtype) + self.points_time(time)[:, None, None]
            y = torch.where(points.usable[..., None], y, 0.0).flatten(1, 2)
        head = c.width // c.heads
        space = code.rotary(code.token_centres(h, w, device)[None], head, h, w)
        clock = frame_rotary(numbers, head)
        if self.rays is None or rays is None:
            rays = None
        else:
            rays = self.rays(rays.movedim(1, -1).flatten(2, 3).flatten(0, 1).to(dtype))
        if self.reference is None or reference is None:
            reference = None
        else:
            reference = self.reference(patched(reference[:, :, None].to(dtype), c.patch))
        return Given(B, places, space, clock, numbers, rays, reference, attend_space, attend), y


def patched(x: Tensor, p: int) -> Tensor:
    """[B, C, F, H, W] -> [B, F h w, C p p]"""
    B, C, F, H, W = x.shape
    x = x.view(B, C, F, H // p, p, W // p, p).permute(0, 2, 3, 5, 1, 4, 6)
    return x.reshape(B, F * (H // p) * (W // p), C * p * p)


def unpatched(x: Tensor, size: tuple[int, int, int], p: int) -> Tensor:
    """[B, F h w, C p p] -> [B, C, F, H, W]"""
    F, h, w = size
    x = x.view(len(x), F, h, w, -1, p, p).permute(0, 4, 1, 2, 5, 3, 6)
    return x.reshape(len(x), x.shape[1], F, h * p, w * p)


def sinusoidal_time(timestep: Tensor) -> Tensor:
    """timestep: [B], 0..1000 -> [B, 256]"""
    speed = 10000.0 ** (-torch.arange(128, device=timestep.device) / 128)
    turned = timestep.float()[:, None] * speed
    return torch.cat([turned.cos(), turned.sin()], -1)


def frame_rotary(frames: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Rotary code of latent frame numbers, wavelengths from 4 to 1000 frames. returns: two of [1, F, D / 2]"""
    half = channels // 2
    step = torch.arange(half, device=frames.device, dtype=torch.float32) / max(half - 1, 1)
    turned = frames.float()[:, None] * (math.pi / 2) * 0.004**step
    return turned.cos()[None], turned.sin()[None]
