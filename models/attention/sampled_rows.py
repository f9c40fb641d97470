"""Attention of a few query rows, exactly and under each pattern: what a pattern would cost, without running it."""
# B batch   N tokens   H heads   D head dim   K blocks   V video blocks   S slots per block   R sampled rows
# P patterns   X heads of a chunk

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.attend_call import Tail
from ...kernels.block_plan import block_of
from ...kernels.pool_blocks import pool_blocks, slot_bias
from .orders import BlockOrder

CHUNK_BYTES = 256 << 20  # of scores at a time; 256 rows at 75,600 tokens are 80 MB a head


@dataclass(frozen=True)
class SampledRows:
    """Rows of one batch entry.

    q: [H, R, D]; k, v: [N, H, D]
    block: int64 [R], video block of each row, counted from the first one
    tail: see `kernels.block_attend`; pooled: mean key, mean value [H, K, D] and log weight [H, K], fp32, with a tail
    centre: fp32 [H, R, D], what asks the pooled keys: the row, or the mean query of its block
    bias: fp32 [K, S], -inf on padding
    """

    q: Tensor
    k: Tensor
    v: Tensor
    block: Tensor
    order: BlockOrder
    scale: float
    bias: Tensor
    pooled: tuple[Tensor, Tensor, Tensor] | None
    centre: Tensor

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, order: BlockOrder, *, scale: float | None = None,
        key_bias: Tensor | None = None, tail: Tail | None = None,
    ) -> SampledRows:  # fmt: skip
        """q, k, v: [N, H, D]; rows: int64 [R], tokens of the video; key_bias: fp32 [N]"""
        slots, key_bias = order.slots, None if key_bias is None else key_bias[None]
        owner = block_of(slots, rows)[0]
        query = q[rows].transpose(0, 1).float()
        pooled, centre = None, query
        if tail:
            (key, log_weight), (value, _) = (pool_blocks(x[None], slots, key_bias) for x in (k, v))
            pooled = key[0].transpose(0, 1), value[0].transpose(0, 1), log_weight[0].T
        if tail == "block":
            centre = pool_blocks(q[None], slots)[0][0, owner].transpose(0, 1)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        bias = slot_bias(slots, key_bias, q.shape[1])[0]
        return cls(query, k, v, owner - order.video[0], order, scale, bias, pooled, centre)

    def chunks(self, most_bytes: int = CHUNK_BYTES) -> Iterator[tuple[slice, SampledScores]]:
        """Some heads at a time."""
        heads, rows, _ = self.q.shape
        step = max(1, most_bytes // (4 * rows * self.bias.numel()))
        for start in range(0, heads, step):
            chunk = slice(start, min(start + step, heads))
            yield chunk, self._scores(chunk)

    def _scores(self, heads: slice) -> SampledScores:
        slots = self.order.slots[0].clamp(min=0).long().flatten()
        key, value = (x[slots, heads].transpose(0, 1).float() for x in (self.k, self.v))  # X K*S D
        logits = (self.scale * self.q[heads] @ key.transpose(1, 2)).unflatten(-1, self.bias.shape) + self.bias
        top = logits.amax((-2, -1))[..., None]
        tail = tail_value = None
        if self.pooled:
            tail_key, tail_value, log_weight = (x[heads] for x in self.pooled)
            pooled = self.scale * self.centre[heads] @ tail_key.transpose(1, 2) + log_weight[:, None]
            top = torch.maximum(top, pooled.amax(-1, keepdim=True))
            tail = (pooled - top).exp_()
        return SampledScores((logits - top[..., None]).exp_(), value, tail, tail_value, self.block, self.order)


@dataclass(frozen=True)
class SampledScores:
    """weight: exp of the logits, fp32 [X, R, K, S]    tail: of the pooled keys on the same footing, [X, R, K]"""

    weight: Tensor
    value: Tensor
    tail: Tensor | None
    tail_value: Tensor | None
    block: Tensor
    order: BlockOrder

    def mass(self) -> Tensor:
        """Mean softmax mass that a token of each video block gets: fp32 [X, V]."""
        first, last = self.order.video
        mass = self.weight.sum(-1)
        share = (mass / mass.sum(-1, keepdim=True)).mean(1)[:, first:last]
        return share / self.order.live[0, first:last]

    def exact(self) -> Tensor:
        """fp32 [X, R, D]"""
        return self.weight.flatten(2) @ self.value / self.weight.sum((-2, -1))[..., None]

    def kept(self, keep: Tensor) -> Tensor:
        """Attention to the kept blocks, and to the others' means where there is a tail.

        keep: bool [1 or X, R, V]; key blocks that are not video are kept
        returns: fp32 [X, R, D]
        """
        first, last = self.order.video
        share = torch.ones(*keep.shape[:2], self.weight.shape[2], device=keep.device)
        share[..., first:last] = keep
        weight = self.weight * share[..., None]
        out, total = weight.flatten(2) @ self.value, weight.sum((-2, -1))[..., None]
        if self.tail is not None:
            tail = self.tail * (1 - share)
            out, total = out + tail @ self.tail_value, total + tail.sum(-1, keepdim=True)
        return out / total.clamp(min=1e-30)


def stratified_rows(count: int, start: int, stop: int, seed: int) -> Tensor:
    """`count` of the tokens start..stop, or all of them: one at random in each of `count` even parts. int64 [R]"""
    tokens = stop - start
    if tokens <= count:
        return torch.arange(start, stop)
    draw = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return start + ((torch.arange(count) + draw) * tokens / count).long().clamp(max=tokens - 1)


def pattern_errors(scores: SampledScores, keeps: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Squared distance to exact attention under each map (None: everything kept), and the squared length of it.

    keeps: as for `SampledScores.kept`
    returns: fp32 [X, P], fp32 [X]
    """
    exact = scores.exact()
    apart = [exact.new_zeros(len(exact)) if k is None else (scores.kept(k) - exact).square().sum((1, 2)) for k in keeps]
    return torch.stack(apart, -1), exact.square().sum((1, 2))
