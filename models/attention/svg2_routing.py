"""Which key blocks each query cluster keeps: by mass (Sparse VideoGen 2, arXiv 2505.18875), or by the error that their
mean would make in their place (SVG-EAR, arXiv 2603.08982).

Both rank per token, because tokens are what a kept block costs; SVG2 ranks by mass alone. The unit is a piece of a key
cluster, not the cluster: a piece is what the pooled tail of the kernel stands for.
"""
# B batch   N tokens   H heads   D head dim   G = B * H, or some of them   C query clusters
# P pieces of key clusters   S slots per piece

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.pool_blocks import pool_blocks, slot_bias
from ...kernels.pooling_error import KeyBlocks, pooling_error
from .kmeans import Pieces

MAP_BYTES = 64 << 20  # of score maps at a time


@dataclass(frozen=True)
class Keys:
    """The key pieces of a call, and their tokens.

    log_mass: fp32 [G, P], log of the sum of exp(key bias) over a piece, -inf where nothing is left of it
    """

    pieces: Pieces
    log_mass: Tensor
    blocks: KeyBlocks

    @classmethod
    def of(cls, k: Tensor, v: Tensor, pieces: Pieces, key_bias: Tensor | None) -> Keys:
        """k, v: [B, N, H, D]; pieces: of the token numbers of k; key_bias: fp32 [B, N]"""
        mean, log_mass = (x.transpose(1, 2).flatten(0, 1) for x in pool_blocks(k, pieces.slots, key_bias))
        value = pool_blocks(v, pieces.slots, key_bias)[0].transpose(1, 2).flatten(0, 1)
        weight = slot_bias(pieces.slots, key_bias, k.shape[2]).exp_()
        return cls(pieces, log_mass, KeyBlocks(k, v, pieces.slots, mean, value, weight))


@dataclass(frozen=True)
class Ranking:
    """order: int32 [G, C, P], pieces of each query cluster, best first, those without tokens last
    counts: int64 [G, C], how many of the first hold the mass that was asked for, or cost as much as those that do
    """

    order: Tensor
    counts: Tensor | None


def rank(query: Tensor, keys: Keys, scale: float, *, by_error: bool, top_p: float | None, least: float) -> Ranking:
    """Pieces by worth, some heads at a time.

    query: fp32 [G, C, D], mean of each query cluster
    top_p: share of the mass that the counts stand for, with `least` tokens in any case; None: no counts
    """
    heads, clusters, pieces = *query.shape[:2], keys.blocks.mean.shape[1]
    order = torch.empty(heads, clusters, pieces, dtype=torch.int32, device=query.device)
    counts = None if top_p is None else torch.empty(heads, clusters, dtype=torch.int64, device=query.device)
    for part in chunks(heads, 8 * clusters * pieces):
        live = keys.pieces.live[part]
        if counts is not None or not by_error:
            mean = keys.blocks.mean[part].transpose(1, 2)
            mass = torch.baddbmm(keys.log_mass[part, None], query[part], mean, alpha=scale)
            best = by_mass = ranked(mass - live[:, None].log(), live)
        if by_error:
            errors = pooling_error(query[part], keys.blocks, part.start, scale)
            best = ranked(errors / live[:, None].clamp(min=1), live)
        if counts is not None:
            kept = kept_by_mass(by_mass, mass.softmax(-1), live, top_p, least)
            counts[part] = kept_by_tokens(best, live, tokens_in(by_mass, live, kept)) if by_error else kept
        order[part] = best
    return Ranking(order, counts)


def chunks(heads: int, head_bytes: int) -> Iterator[slice]:
    """Heads whose maps fit into the memory for maps, one at least."""
    step = max(1, MAP_BYTES // head_bytes)
    return (slice(start, min(start + step, heads)) for start in range(0, heads, step))


def ranked(worth: Tensor, live: Tensor) -> Tensor:
    """Pieces from most to least worth, those without tokens at the end.

    worth: [G, C, P]; live: [G, P]
    returns: int64 [G, C, P]
    """
    worth = worth.clamp(min=torch.finfo(worth.dtype).min).masked_fill(live[:, None] == 0, -torch.inf)
    return worth.argsort(dim=-1, descending=True, stable=True)


def kept_by_mass(order: Tensor, mass: Tensor, live: Tensor, top_p: float, least: float) -> Tensor:
    """How many of the best pieces hold top_p of the mass, the crossing one included, and at least `least` tokens.

    order: int64 [G, C, P]; mass: [G, C, P], sums to 1; live: [G, P]
    returns: int64 [G, C]
    """
    held, cost = mass.gather(-1, order), _tokens(order, live)
    before, tokens = held.cumsum(-1) - held, cost.cumsum(-1, dtype=torch.int32) - cost
    return (((before <= top_p) | (tokens < least)) & (cost > 0)).sum(-1)


def kept_by_tokens(order: Tensor, live: Tensor, budget: Tensor | float) -> Tensor:
    """How many of the best pieces come nearest to `budget` tokens, at least one.

    order: int64 [G, C, P]; live: [G, P]; budget: a number or [G, C, 1]
    returns: int64 [G, C]
    """
    cost = _tokens(order, live)
    keep = 2 * cost.cumsum(-1, dtype=torch.int32) - cost <= 2 * budget
    keep[..., 0] = True
    return (keep & (cost > 0)).sum(-1)


def tokens_in(order: Tensor, live: Tensor, counts: Tensor) -> Tensor:
    """Tokens in the first `counts` pieces: int64 [G, C, 1]."""
    past = torch.arange(order.shape[-1], device=order.device) >= counts[..., None]
    return _tokens(order, live).masked_fill(past, 0).sum(-1, keepdim=True)


def _tokens(order: Tensor, live: Tensor) -> Tensor:
    """Tokens of pieces in order of worth: int32 [G, C, P]."""
    return live[:, None].expand(order.shape).gather(-1, order)
