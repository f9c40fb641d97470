"""Queries, keys and values as a video model makes them, without the model: smooth latents and rotary positions.

Fields that vary slowly over frames, rows and columns are what all tokens have in common; each head looks at a mixture
of its own, adds a direction that all its tokens share, and noise. Queries and keys are normalised as Wan normalises
them, then turned by Wan's rotary embedding in three axes. So nearby tokens attend to each other through their
positions, distant ones through what they show, and heads differ in how much of each.
"""
# B batch   N tokens   H heads   D head dim   F fields   R rows   K blocks   S slots per block

from __future__ import annotations

import math

import torch
from interspatial.models.attention.orders import BlockOrder
from interspatial.models.layout import TokenLayout
from torch import Tensor
from torch.nn.functional import interpolate

FIELDS = 24
CELLS = ((3, 4, 6), (6, 10, 16))  # of the random grids that the fields are smooth between: objects, and their parts
THETA = 10000.0
# A head's shares of what it shows, of its own direction and of noise in queries and keys, and the length that they are
# normalised to. With these, the fifth of the key blocks that a query block looks at most (tiles of 8 x 8) hold 89 % of
# its softmax mass in the mean of 16 heads, 57 to 100 % between them, and the tenth 84 % (6 x 24 x 40 tokens, D 128,
# seeds 0 to 2). Published: above 80 % for most heads at a fifth (AdaSpa), 95 % at 13 % by an oracle of clusters (SVG2).
SHOWN, SHARED, NOISE = (0.9, 1.5), (0.2, 1.2), 0.7
LENGTH = (1.15, 1.45)


def structured(
    layout: TokenLayout, heads: int, dim: int, device: str, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v: [1, N, H, D]. What is not video has noise for fields and is not turned."""
    draw = torch.Generator(device).manual_seed(seed)
    normal = lambda *size: torch.randn(size, device=device, generator=draw)  # noqa: E731
    fields = torch.cat([_smooth(normal, layout.grid, cells) for cells in CELLS], 1)
    x = normal(layout.tokens, fields.shape[1])
    video = slice(layout.video.start, layout.video.stop)
    x[video] = fields
    turn = _turns(layout.grid, dim, device)
    out = torch.empty(3, 1, layout.tokens, heads, dim, device=device, dtype=dtype)
    for head in range(heads):
        part = head / max(heads - 1, 1)
        mixture, shared = normal(x.shape[1], dim) * x.shape[1] ** -0.5, normal(dim)
        shown = SHOWN[0] + (SHOWN[1] - SHOWN[0]) * part
        own = SHARED[1] + (SHARED[0] - SHARED[1]) * part  # heads of positions first, heads of content last
        length = LENGTH[0] + (LENGTH[1] - LENGTH[0]) * ((0.5 + 0.618 * head) % 1.0)
        for which in range(2):
            y = shown * (x @ mixture) + own * shared + NOISE * normal(layout.tokens, dim)
            y *= length / y.square().mean(-1, keepdim=True).sqrt()
            y[video] = _turned(y[video], turn)
            out[which, 0, :, head] = y
        out[2, 0, :, head] = x @ normal(x.shape[1], dim) * x.shape[1] ** -0.5 + 0.5 * normal(layout.tokens, dim)
    return out.unbind(0)


def _smooth(normal, grid: tuple[int, int, int], cells: tuple[int, int, int]) -> Tensor:
    """Random fields that are smooth between the corners of some cells, of variance 1: [T * H * W, F / len(CELLS)]"""
    corners = normal(1, FIELDS // len(CELLS), *(n + 1 for n in cells))
    field = interpolate(corners, size=grid, mode="trilinear", align_corners=True)[0].flatten(1).T
    return (field - field.mean(0)) / field.std(0)


def _turns(grid: tuple[int, int, int], dim: int, device: str) -> Tensor:
    """Angles of Wan's rotary embedding, [N, D / 2]: the first pairs turn by frame, then by row, then by column."""
    sides = dim - 4 * (dim // 6), 2 * (dim // 6), 2 * (dim // 6)
    places = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    angles = []
    for place, side in zip(places, sides, strict=True):
        pace = THETA ** -(torch.arange(0, side, 2, device=device, dtype=torch.float32) / side)
        angles.append(place.flatten()[:, None] * pace)
    return torch.cat(angles, 1)


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Neighbouring numbers as the parts of a complex one. x: [N, D]"""
    even, odd = x[:, ::2], x[:, 1::2]
    return torch.stack((even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()), -1).flatten(1)


def sampled_rows(layout: TokenLayout, count: int, device: str) -> Tensor:
    """Numbers of video tokens, spread over the clip: int64 [R]"""
    first, last = layout.video.start, layout.video.stop - 1
    return torch.linspace(first, last, min(count, last - first + 1), device=device, dtype=torch.float64).long()


def exact(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Dense attention of some rows in fp32, head by head: [1, R, H, D]"""
    out = torch.empty_like(q[:, rows], dtype=torch.float32)
    for head in range(q.shape[2]):
        query, key, value = (x[0, :, head].float() for x in (q[:, rows], k, v))
        out[0, :, head] = (query @ key.T * q.shape[-1] ** -0.5).softmax(-1) @ value
    return out


def held(q: Tensor, k: Tensor, order: BlockOrder, share: float, blocks: int = 24) -> Tensor:
    """Share of the softmax mass in the best `share` of the key blocks of a query block: fp32 [H], mean of `blocks`.

    q, k: [1, N, H, D]; what the blocks hold is summed exactly, so this is what the best choice of blocks could keep.
    """
    first, last = order.video
    picked = torch.linspace(first, last - 1, min(blocks, last - first), dtype=torch.float64).long().tolist()
    slots, owner = order.slots[0].long(), torch.zeros(q.shape[1], dtype=torch.long, device=q.device)
    live = slots >= 0
    number = torch.arange(len(slots), device=q.device)[:, None].expand_as(slots)
    owner[slots[live]] = number[live]
    found = torch.zeros(q.shape[2], device=q.device)
    for head in range(q.shape[2]):
        key = k[0, :, head].float()
        for block in picked:
            rows = slots[block][live[block]]
            weight = (q[0, rows, head].float() @ key.T * q.shape[-1] ** -0.5).softmax(-1).mean(0)
            mass = torch.zeros(len(slots), device=q.device).index_add_(0, owner, weight)
            found[head] += mass.topk(math.ceil(share * len(slots))).values.sum() / len(picked)
    return found
