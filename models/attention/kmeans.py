"""K-means over the tokens of all heads at once, for blocks that are clusters (Sparse VideoGen 2, arXiv 2505.18875).

Differs from the published code: distinct tokens to start from, chosen by a seed; a fixed number of rounds, because a
stop by shift waits for the device every round; fp32 centroids; sums in a fixed order, where theirs are atomic.
"""
# B batch   N tokens   H heads   D head dim   G = B * H   C clusters   P pieces   S slots per piece

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.pool_blocks import pool_blocks

# Of distances at a time. On one CPU core 0.1 to 8 MB of them ran alike; devices want long launches.
CPU_BYTES, DEVICE_BYTES = 4 << 20, 256 << 20


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
    labels: int64 [G, N]
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
    tokens = torch.randperm(x.shape[1], generator=draw)[:clusters].to(x.device)
    return x.index_select(1, tokens).float().transpose(1, 2).flatten(0, 1)


def kmeans(x: Tensor, centroids: Tensor, rounds: int, size: int) -> Clusters:
    """`rounds` times: every token to its nearest centroid, every centroid to the mean of its tokens.

    x: [B, N, H, D]
    centroids: fp32 [G, C, D], where to start
    rounds: 1 or more    size: S of the pieces
    """
    for _ in range(rounds):
        labels = nearest(x, centroids)
        pieces = cut(labels, centroids.shape[1], size)
        centroids = _means(x, pieces, centroids)
    return Clusters(centroids, labels, pieces)


def nearest(x: Tensor, centroids: Tensor, max_bytes: int | None = None) -> Tensor:
    """Number of the centroid at the least Euclidean distance, the lowest where several are.

    Half precision tokens are compared in bfloat16, as seen from the middle of the centroids: after 10 rounds on queries
    and keys of the tiny model the squared distances are within 0.4 % of those with fp32 products.

    x: [B, N, H, D]
    centroids: fp32 [G, C, D]
    returns: int64 [G, N]
    """
    if max_bytes is None:
        max_bytes = CPU_BYTES if x.device.type == "cpu" else DEVICE_BYTES
    (batch, tokens, heads, _), (groups, clusters, _) = x.shape, centroids.shape
    labels = torch.empty(batch, heads, tokens, dtype=torch.int64, device=x.device)
    products = torch.float32 if x.dtype == torch.float32 else torch.bfloat16
    middle = centroids.mean(1, keepdim=True)
    centroids = centroids - middle
    lift = centroids.square().sum(-1).mul_(-0.5).to(products).view(batch, heads, 1, clusters)
    centroids = centroids.to(products).view(batch, heads, clusters, -1).transpose(2, 3)
    middle = middle.view(batch, heads, 1, -1)
    step = max(1, max_bytes // (4 * clusters))  # tokens of one head
    width, span = max(1, step // tokens), min(step, tokens)
    for b in range(batch):
        for head in range(0, heads, width):
            for start in range(0, tokens, span):
                at = b, slice(head, head + width), slice(start, start + span)
                rows = (x[b, at[2], at[1]].transpose(0, 1).float() - middle[at[:2]]).to(products)
                labels[at] = torch.baddbmm(lift[at[:2]], rows, centroids[at[:2]]).argmax(-1)
    return labels.view(groups, tokens)


def cut(labels: Tensor, clusters: int, size: int) -> Pieces:
    """Each cluster in as few blocks of at most `size` tokens as will do, even to one token, tokens in ascending order.

    labels: int64 [G, N], below `clusters`
    """
    groups, tokens = labels.shape
    device = labels.device
    count = torch.zeros(groups, clusters, dtype=torch.int64, device=device)
    count.scatter_add_(1, labels, torch.ones_like(labels))
    parts = (count + size - 1) // size
    past = parts.cumsum(1)  # number of the first piece after each cluster
    total = (tokens + min(clusters, tokens) * (size - 1)) // size  # as many as there can be, known without the device
    token = labels.argsort(dim=1, stable=True)
    label = labels.gather(1, token)
    rank = torch.arange(tokens, device=device) - (count.cumsum(1) - count).gather(1, label)
    short, longer = (x.gather(1, label) for x in (count // parts.clamp(min=1), count % parts.clamp(min=1)))
    edge = longer * (short + 1)  # tokens in the pieces that hold one more
    late = rank >= edge
    part = torch.where(late, longer + (rank - edge) // short, rank // (short + 1))
    slot = torch.where(late, (rank - edge) % short, rank % (short + 1))
    piece = (past - parts).gather(1, label) + part
    slots = torch.full((groups, total * size), -1, dtype=torch.int32, device=device)
    slots = slots.scatter_(1, piece * size + slot, token.int()).view(groups, total, size)
    numbers = torch.arange(total, device=device).expand(groups, -1).contiguous()
    owner = torch.searchsorted(past, numbers, right=True).clamp_(max=clusters - 1)
    return Pieces(slots, (slots >= 0).sum(-1).int(), owner)


def _means(x: Tensor, pieces: Pieces, before: Tensor) -> Tensor:
    """Mean of each cluster, [G, C, D]; `before` where it has no tokens.

    Pieces first, then a product with who owns them: a sum in a fixed order on every device, at a few hundredths of the
    price of the distances.
    """
    mean, _ = pool_blocks(x, pieces.slots)
    mean = mean.transpose(1, 2).flatten(0, 1)
    out, live = torch.empty_like(before), pieces.live.float()
    groups, clusters, _ = before.shape
    step = max(1, DEVICE_BYTES // (4 * clusters * live.shape[1]))
    for start in range(0, groups, step):
        part = slice(start, start + step)
        share = live.new_zeros(len(live[part]), clusters, live.shape[1])
        share.scatter_(1, pieces.owner[part, None], live[part, None])
        count = share.sum(-1, keepdim=True)
        out[part] = torch.where(count > 0, torch.bmm(share, mean[part]) / count.clamp(min=1), before[part])
    return out
