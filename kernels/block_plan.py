"""BlockPlan: which key blocks each query block sees. A sparse method writes one, the kernels read it."""
# B batch   N tokens   H heads   Q query blocks   K key blocks   S slots per block   C longest list
# G = 1 (geometry shared by all heads) or B * H

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockPlan:
    """Which key blocks each query block sees, as tables that a gather and a Triton kernel read alike.

    Slots hold token numbers in model order, live slots first in each block, -1 after them. Each query token sits in
    exactly one slot of `q_slots`, each key token in exactly one of `k_slots`. Query blocks in `full` see every key and
    have no tail; their lists are not read. Numbers that decide a launch are Python's, so no device is waited for.
    """

    q_slots: Tensor  # int32 [G, Q, S]
    k_slots: Tensor  # int32 [G, K, S]
    q_live: Tensor  # int32 [G, Q], live slots
    k_live: Tensor  # int32 [G, K]
    cols: Tensor  # int32 [1 or B * H, Q, C], kept key blocks; entries past the count are ignored, whatever they hold
    counts: Tensor | None = None  # int32 [1 or B * H, Q]; None: all C entries count
    full: tuple[tuple[int, int], ...] = ()  # (first, past the last) query block, ascending

    @property
    def sees_everything(self) -> bool:
        """True when the plan is known, without asking the device, to be dense attention."""
        queries, width = self.cols.shape[1:]
        all_kept = self.counts is None and width == self.k_slots.shape[1]
        return all_kept or sum(stop - start for start, stop in self.full) == queries


def kept_lists(keep: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Lists from a map; `width` caps them without waiting for the device (blocks past it are lost, highest first).

    keep: bool [1 or B * H, Q, K]
    returns: `cols` ascending, `counts`, as in BlockPlan
    """
    width = keep.shape[-1] if width is None else width
    cols = torch.argsort(~keep, dim=-1, stable=True)[..., :width]
    return cols.int(), keep.sum(-1).clamp(max=width).int()


def kept_mask(plan: BlockPlan) -> Tensor:
    """The map back from the lists: bool [1 or B * H, Q, K]."""
    lists, queries, width = plan.cols.shape
    keys = plan.k_slots.shape[1]
    cols = plan.cols.long()
    if plan.counts is not None:
        cols = cols.masked_fill(torch.arange(width, device=cols.device) >= plan.counts[..., None], keys)
    mask = torch.zeros(lists, queries, keys + 1, dtype=torch.bool, device=cols.device).scatter_(-1, cols, True)
    for start, stop in plan.full:
        mask[:, start:stop] = True
    return mask[..., :keys]


def kept_share(plan: BlockPlan) -> Tensor:
    """Share of the score matrix that is computed exactly: live pairs in kept blocks over all live pairs.

    returns: fp32 scalar on the plan's device, so that only who wants the number waits for it
    """
    q_live, k_live = plan.q_live.float(), plan.k_live.float()
    seen = torch.einsum("gq,gqk,gk->g", q_live, kept_mask(plan).float(), k_live)
    return (seen / (q_live.sum(-1) * k_live.sum(-1))).mean()
