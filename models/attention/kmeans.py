"""K-means over the tokens of all heads at once, for blocks that are clusters (Sparse VideoGen 2, arXiv 2505.18875).

Differs from the published code: distinct tokens to start from, chosen by a seed; a fixed number of rounds, because a
stop by shift waits for the device every round; fp32 centroids; sums in a fixed order, where theirs are atomic.
"""
# B batch   N tokens   H heads   D head dim   G = B * H   C clusters   P pieces   S slots per piece

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ...kernels.nearest import nearest
from ...kernels.pool_blocks import pool_blocks


@dataclass(frozen=True)
class Pieces:
    """Clusters cut into blocks of at most S tokens, in the order of their clusters; the last blocks may be empty.

    slots: int32 [G, P, S], token numbers, -1 is padding    live: int32 [G, P]
    owner: int64 [G, P], the cluster; of an empty block any
    """

    slots: Tensor
    live: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Clusters:
    """centroids: fp32 [G, C, D], mean of the tokens of each label; of a cluster without tokens what it was before
    labels: int32 [G, N]
    """

    centroids: Tensor
    labels: Tensor
    pieces: Pieces


def first_centroids(x: Tensor, clusters: int, seed: int) -> Tensor:
    """Distinct tokens, the same ones for every head and batch entry.

    x: [B, N, H, D], N at least `clusters`
    returns: fp32 [G, C, D]
    """
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randperm(x.shape[1], generator=draw)[:clusters]
    if x.is_cuda:  # a copy from any other memory waits for what the device has to do
        tokens = tokens.pin_memory()
    tokens = tokens.to(x.device, non_blocking=True)
    return x.index_select(1, tokens).float().transpose(1, 2).flatten(0, 1)


def kmeans(x: Tensor, centroids: Tensor, rounds: int, size: int) -> Clusters:
    """`rounds` times: every token to its nearest centroid, every centroid to the mean of its tokens.

    x: [B, N, H, D]
    centroids: fp32 [G, C, D], where to start
    rounds: 1 or more    size: S of the pieces
    """
    for _ in range(rounds):
        labels = nearest(x, centroids)
        pieces, first, count = _cut(labels, centroids.shape[1], size)
        centroids = _means(x, pieces, first, count, centroids)
    return Clusters(centroids, labels, pieces)


def cut(labels: Tensor, clusters: int, size: int) -> Pieces:
    """Each cluster in as few blocks of at most `size` tokens as will do, even to one token, tokens in ascending order.

    labels: int32 or int64 [G, N], below `clusters`
    """
    return _cut(labels, clusters, size)[0]


def _cut(labels: Tensor, clusters: int, size: int) -> tuple[Pieces, Tensor, Tensor]:
    """The pieces, the number of each cluster's first, and how many tokens it has: int64 [G, C].

    Counted from the sorted labels: what is worked out is of the size of the pieces, not of the tokens.
    """
    (groups, tokens), device = labels.shape, labels.device
    # A device sorts numbers digit by digit, so that short ones take a quarter of the passes of long ones.
    keys = labels.short() if clusters <= 1 << 15 else labels
    ordered, token = keys.sort(dim=1, stable=True)
    numbers = torch.arange(clusters, dtype=keys.dtype, device=device).expand(groups, -1).contiguous()
    begin = torch.searchsorted(ordered, numbers)
    count = torch.searchsorted(ordered, numbers, right=True) - begin
    need = (count + size - 1) // size  # pieces
    past = need.cumsum(1)
    total = (tokens + min(clusters, tokens) * (size - 1)) // size  # as many as there can be, known without the device
    piece = torch.arange(total, device=device).expand(groups, -1).contiguous()
    owner = torch.searchsorted(past, piece, right=True).clamp_(max=clusters - 1)
    parts, part = need.gather(1, owner).clamp_(min=1), piece - (past - need).gather(1, owner)
    held = count.gather(1, owner)
    short, longer = held // parts, held % parts  # tokens of a piece, and how many pieces hold one more
    start = begin.gather(1, owner) + part * short + torch.minimum(part, longer)
    live = (short + (part < longer)).masked_fill_(piece >= past[:, -1:], 0).int()
    slot = torch.arange(size, device=device)
    place = (start[..., None] + slot).clamp_(max=tokens - 1).flatten(1)
    slots = token.gather(1, place).view(groups, total, size).int().masked_fill_(slot >= live[..., None], -1)
    return Pieces(slots, live, owner), past - need, count


def _means(x: Tensor, pieces: Pieces, first: Tensor, count: Tensor, before: Tensor) -> Tensor:
    """Mean of each cluster, [G, C, D]; `before` where it has no tokens.

    Pieces first, then those of one cluster, which lie together: sums in a fixed order on every device.

    first, count: int64 [G, C], of each cluster the number of its first piece and how many tokens it has
    """
    mean = pool_blocks(x, pieces.slots)[0].transpose(1, 2).flatten(0, 1)
    groups, total = pieces.live.shape
    bags = (first + total * torch.arange(groups, device=first.device)[:, None]).flatten()
    rows, table = torch.arange(groups * total, device=first.device), mean.flatten(0, 1)
    sums = embedding_bag(rows, table, bags, mode="sum", per_sample_weights=pieces.live.flatten().float())
    count = count[..., None]
    return torch.where(count > 0, sums.view_as(before) / count.clamp(min=1), before)
