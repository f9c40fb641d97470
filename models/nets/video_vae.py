"""A causal video VAE: 8x in space, 4x in time, 16 channels; pictures and clips of any length, in chunks of any length.

B batch   T frames   L latent frames, T = 4 (L - 1) + 1   C channels   H W rows and columns

Source: ISA4D (2505.15800), a video VAE after the image VAE of Stable Diffusion 3 with causal 3D convolutions. Ours:
norms over the channels of one place instead of groups over the whole picture, so that a chunk gives what the whole clip
gives; no attention in the middle, so that memory grows with the area; pixels folded into channels first (`patch`),
which leaves out the dearest level; and a linear path beside the net, from each window of 8 x 8 pixels and 4 frames to
its latent and back, which training starts at the principal components. The latent is the mean of a posterior whose
spread is a constant of the training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .causal_conv import CausalConv, Stream

SPACE, TIME, CHANNELS = 8, 4, 16  # of the paper; what ComfyUI's 16-channel video models expect


@dataclass(frozen=True)
class VideoVAEConfig:
    """widths: channels of each level, finest first; the last two steps between levels halve time too
    encoder_blocks, decoder_blocks: residual blocks of each level    patch: pixels along a folded square
    taps: frames that the two convolutions of a block see

    raises: ValueError where this is not 8x in space and 4x in time
    """

    widths: tuple[int, ...] = (32, 56, 80)
    encoder_blocks: tuple[int, ...] = (1, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 2)
    patch: int = 2
    taps: tuple[int, int] = (3, 1)

    def __post_init__(self) -> None:
        levels = len(self.widths)
        if levels < 3 or not levels == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ValueError(f"Video VAE: {levels} widths, {len(self.encoder_blocks)} and {len(self.decoder_blocks)} "
                             "numbers of blocks. Accepted: as many of each, at least 3.")  # fmt: skip
        if self.patch * 2 ** (levels - 1) != SPACE:
            raise ValueError(f"Video VAE: {levels} levels of pixels folded by {self.patch} make "
                             f"{self.patch * 2 ** (levels - 1)}x in space. Accepted: {SPACE}x.")  # fmt: skip

    @staticmethod
    def from_json(text: str) -> VideoVAEConfig:
        """raises: ValueError for settings that are not known or do not fit"""
        given = json.loads(text)
        unknown = set(given) - set(VideoVAEConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(f"Video VAE: the file's config has {', '.join(sorted(unknown))}, which this version does "
                             "not know. Update Interspatial.")  # fmt: skip
        return VideoVAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class ChannelNorm(nn.Module):
    """Root mean square over the channels of each place, then SiLU. No statistic over time or space."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(F.pad(Tensor(0), (0, channels), value=1.0))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * (wide.square().mean(2, keepdim=True) + 1e-6).rsqrt()
        return F.silu(wide * self.gain.float().view(-1, 1, 1)).to(x.dtype)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, taps: tuple[int, int]):
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in taps)
        self.convs = nn.ModuleList(CausalConv(channels, channels, n) for n in taps)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(norm(y), stream)
        return x + y


class Grow(nn.Module):
    """Each place becomes a square of `scale` pixels a side, each frame `frames`; the first frame becomes one."""

    def __init__(self, inside: int, outside: int, frames: int, scale: int = 2):
        super().__init__()
        self.frames, self.scale = frames, scale
        self.conv = CausalConv(inside, outside * scale**2 * frames, taps=1, side=1)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        out = self.conv(x).unflatten(2, (self.frames, -1)).flatten(1, 2)
        if stream is None or not stream.begun(self):
            out = out[:, self.frames - 1 :]
        if stream is not None:
            stream.keep(self, out[:, :0])  # the mark that the clip has begun
        return F.pixel_shuffle(out, self.scale)


class Chain(nn.ModuleList):
    """Layers in a row."""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, ChannelNorm) else layer(x, stream)
        return x


class VideoVAE(nn.Module):
    """Without a stream a call takes a whole clip; with one, the next chunk of it (see `streaming`)."""

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        self.config = config
        pixels, widths, last = 3 * config.patch**2, config.widths, len(config.widths) - 1
        down = [CausalConv(pixels, widths[0])]
        up: list[nn.Module] = [CausalConv(CHANNELS, widths[last], taps=1, side=1)]
        for i in range(last + 1):
            down += [Block(widths[i], config.taps) for _ in range(config.encoder_blocks[i])]
            if i < last:
                down.append(CausalConv(widths[i], widths[i + 1], step=2 if i >= last - 2 else 1, stride=2))
        for i in reversed(range(last + 1)):
            up += [Block(widths[i], config.taps) for _ in range(config.decoder_blocks[i])]
            if i > 0:
                up.append(Grow(widths[i], widths[i - 1], 2 if i > last - 2 else 1))
        self.encoder = Chain([*down, ChannelNorm(widths[last]), CausalConv(widths[last], CHANNELS, taps=1)])
        self.decoder = Chain([*up, ChannelNorm(widths[0]), CausalConv(widths[0], pixels, taps=1)])
        self.linear_encoder = CausalConv(3 * SPACE**2, CHANNELS, taps=TIME, side=1, step=TIME)
        self.linear_decoder = Grow(CHANNELS, 3, TIME, SPACE)

    def encode(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        """video: [B, 3, T, H, W] in -1..1, H and W multiples of 8; T = 4n + 1 from the first frame on, later 4n
        returns: [B, 16, L, H/8, W/8]

        raises: ValueError for other sizes
        """
        T, H, W = video.shape[2:]
        first = stream is None or not stream.tails
        over = 1 if first else 0
        if H % SPACE or W % SPACE or T == 0 or (T - over) % TIME:
            raise ValueError(f"Video VAE: cannot encode {T} frames of {H} x {W} {'at the start' if first else 'next'}. "
                             f"Accepted: sides that are multiples of {SPACE}, and 4n + 1 frames at the start, 4n "
                             "after that. Pad the clip; `streaming` does.")  # fmt: skip
        frames = video.transpose(1, 2)
        latent = self.encoder(F.pixel_unshuffle(frames, self.config.patch), stream)
        return (latent + self.linear_encoder(F.pixel_unshuffle(frames, SPACE), stream)).transpose(1, 2)

    def decode(self, latent: Tensor, stream: Stream | None = None) -> Tensor:
        """latent: [B, 16, L, h, w] -> [B, 3, T, 8h, 8w] in about -1..1, T = 4 (L - 1) + 1; for later chunks 4 L"""
        latent = latent.transpose(1, 2)
        frames = F.pixel_shuffle(self.decoder(latent, stream), self.config.patch)
        return (frames + self.linear_decoder(latent, stream)).transpose(1, 2)
