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
    # A sum and a scatter: 57 ms a head of 1260 x 1260 on one CPU core, where sorting the map takes 82.
    place = keep.cumsum(-1).sub_(1).masked_fill_(~keep, width).clamp_(max=width)
    number = torch.arange(keep.shape[-1], dtype=torch.int32, device=keep.device).expand(keep.shape)
    cols = torch.zeros(*keep.shape[:-1], width + 1, dtype=torch.int32, device=keep.device).scatter_(-1, place, number)
    return cols[..., :width].contiguous(), keep.sum(-1).clamp(max=width).int()


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
    heads = max(len(table) for table in (plan.cols, q_live, k_live))
    seen = torch.empty(heads, plan.cols.shape[1], device=k_live.device)
    past = torch.arange(plan.cols.shape[2], device=k_live.device)
    for head in range(heads):  # one at a time: the lists of all heads as int64 would take a GB at 720p
        lists, keys = (head * len(table) // heads for table in (plan.cols, k_live))
        tokens = k_live[keys][plan.cols[lists].clamp(0, k_live.shape[1] - 1).long()]
        if plan.counts is not None:
            tokens = tokens.masked_fill_(past >= plan.counts[lists, :, None], 0)
        seen[head] = tokens.sum(-1)
        for start, stop in plan.full:
            seen[head, start:stop] = k_live[keys].sum()
    return ((seen * q_live).sum(-1) / (q_live.sum(-1) * k_live.sum(-1))).mean()


def block_of(slots: Tensor, tokens: Tensor) -> Tensor:
    """Number of the block that holds each token: int64 [G, R]. slots: int32 [G, Q, S]"""
    groups, blocks, size = slots.shape
    number = torch.arange(blocks, device=slots.device).repeat_interleave(size).expand(groups, -1)
    place = slots.flatten(1).long()
    owner = number.new_zeros(groups, blocks * size + 1)  # the last column takes what padding slots write
    return owner.scatter_(1, place.masked_fill(place < 0, blocks * size), number)[:, tokens]


def check_plan(plan: BlockPlan, tokens_q: int, tokens_k: int) -> None:
    """Refuse a plan that would leave out or repeat a token or a block. Waits for the device: once a plan, not per call.

    tokens_q, tokens_k: of the attention calls that the plan is for
    raises: ValueError that says what is wrong, how often, and what is accepted
    """
    _check_shapes(plan)
    faults = [
        *_slot_faults("query", plan.q_slots, plan.q_live, tokens_q),
        *_slot_faults("key", plan.k_slots, plan.k_live, tokens_k),
        *_list_faults(plan),
    ]
    counts = torch.stack([broken.sum() for broken, _ in faults]).tolist()
    for count, (_, fault) in zip(counts, faults, strict=True):
        if count:
            raise ValueError(f"The block plan cannot be used: {count} {fault}.")


def _check_shapes(plan: BlockPlan) -> None:
    """What needs no device."""
    queries = plan.q_slots.shape[1]
    wanted = {"q_live": plan.q_slots.shape[:2], "k_live": plan.k_slots.shape[:2], "counts": plan.cols.shape[:2]}
    for name in ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts"):
        if (table := getattr(plan, name)) is None:
            continue
        if table.dtype != torch.int32:
            raise ValueError(f"The block plan's {name} are {table.dtype}; the kernels read int32.")
        if table.shape != wanted.get(name, table.shape):
            raise ValueError(f"The block plan's {name} are {list(table.shape)}; they must be {list(wanted[name])}.")
    if plan.cols.shape[1] != queries:
        raise ValueError(f"The block plan lists key blocks for {plan.cols.shape[1]} query blocks, and has {queries}.")
    edges = [0, *(edge for run in plan.full for edge in run), queries]
    if edges != sorted(edges) or any(start == stop for start, stop in plan.full):
        raise ValueError(f"The block plan's full runs are {plan.full}; they must ascend within 0 to {queries}.")


def _slot_faults(side: str, slots: Tensor, live: Tensor, tokens: int) -> list[tuple[Tensor, str]]:
    """Where each rule about slots is broken, bool of any shape, and the sentence that follows the number of times."""
    held = slots >= 0
    outside = (slots < -1) | (slots >= tokens)
    seat = slots.long().masked_fill(outside | ~held, tokens).flatten(1)
    seats = torch.zeros(len(slots), tokens + 1, dtype=torch.int64, device=slots.device)
    seats = seats.scatter_add_(1, seat, torch.ones_like(seat))[:, :tokens]
    late = (held[..., 1:] & ~held[..., :-1]).any(-1)
    return [
        (outside, f"{side} slots hold a number that no token has; accepted are 0 to {tokens - 1}, and -1 for padding"),
        (seats == 0, f"{side} tokens of {tokens} are in no slot; each must be in exactly one"),
        (seats > 1, f"{side} tokens of {tokens} are in several slots; each must be in exactly one"),
        (late, f"{side} blocks have padding before a token; live slots must come first"),
        (held.sum(-1) != live, f"{side} blocks give another number of live slots than they have"),
    ]


def _list_faults(plan: BlockPlan) -> list[tuple[Tensor, str]]:
    """As `_slot_faults`, for the lists that are read."""
    queries, width = plan.cols.shape[1:]
    keys, device = plan.k_slots.shape[1], plan.cols.device
    read = torch.ones(queries, dtype=torch.bool, device=device)
    for start, stop in plan.full:
        read[start:stop] = False
    counts = torch.full(plan.cols.shape[:2], width, device=device) if plan.counts is None else plan.counts
    counted = (torch.arange(width, device=device) < counts[..., None]) & read[:, None]
    strange = counted & ((plan.cols < 0) | (plan.cols >= keys))
    listed = plan.cols.masked_fill(~counted | strange, keys).sort(-1).values
    again = (listed[..., 1:] == listed[..., :-1]) & (listed[..., 1:] < keys)
    return [
        (((counts < 0) | (counts > width)) & read, f"counts are outside 0 to {width}, the length of the lists"),
        (strange, f"listed key blocks are outside 0 to {keys - 1}"),
        (again, "key blocks are listed more than once for a query block, and would count so"),
    ]
