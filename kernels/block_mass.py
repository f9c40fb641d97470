"""Softmax mass of every block pair: what a sparse method would keep if it knew, from a log-sum-exp that it does know.

The search of AdaSpa (arXiv 2502.21079), calibration, and the recall of other methods' choices. Unlike AdaSpa it takes
ragged blocks anywhere, a key bias, and an estimate from a few rows of each query block.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block

from __future__ import annotations

import torch
from torch import Tensor

from . import gather_mass, triton_mass
from .block_plan import BlockPlan
from .dispatch import Backend, Dispatch
from .mass_call import MassCall

BACKENDS = Dispatch("Block mass", tuple(Backend(way.NAME, way.why_not, way.mass) for way in (triton_mass, gather_mass)))


def block_mass_reference(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    rows: int | None = None,
) -> Tensor:
    """The whole score matrix of one head at a time; the contract is that of `block_mass`."""
    batch, tokens, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    key_bias = torch.zeros(k.shape[:2], device=k.device) if key_bias is None else key_bias.float()
    found = []
    for g in range(batch * heads):
        b, h = divmod(g, heads)
        score = scale * q[b, :, h].float() @ k[b, :, h].float().T + key_bias[b] - lse[b, :, h, None]
        score[lse[b, :, h] == -torch.inf] = -torch.inf
        in_query = _counted(plan.q_slots[g % len(plan.q_slots)], tokens, rows)
        in_key = _counted(plan.k_slots[g % len(plan.k_slots)], k.shape[1])
        found.append(in_query @ score.exp() @ in_key.T)
    return torch.stack(found)


def _counted(slots: Tensor, tokens: int, rows: int | None = None) -> Tensor:
    """How often each token counts for each block; of a block's live tokens, those in the middle of `rows` equal parts.

    slots: [K, S]; returns fp32 [K, N]
    """
    counted = torch.zeros(len(slots), tokens, device=slots.device)
    for block, line in zip(counted, slots, strict=True):
        live = line[line >= 0].long()
        count = min(rows or len(live), len(live))
        for r in range(count):
            block[live[(2 * r + 1) * len(live) // (2 * count)]] = len(live) / count
    return counted


def block_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    rows: int | None = None,
    max_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sum of exp(logit - lse) over the live pairs of each query block and key block, in fp32, all pairs of blocks.

    With the lse of dense attention on the same q and k it is softmax mass, and over the key blocks of a query block it
    sums to the block's live rows. With an older lse, or one of a sparse call, it is that up to a factor for each row.
    A row whose lse is -inf adds nothing. Only the geometry of the plan is read, not its lists.

    q, k: [B, N, H, D]
    lse: natural, fp32 [B, N, H], as `block_attend` returns it
    scale: of the logits; None: D ** -0.5
    key_bias: fp32 [B, N], added to the logits, -inf allowed
    rows: read only that many rows of each query block, evenly spread over its live slots, and scale the sum up;
        None: all. On smooth random fields (4096 tokens, blocks of 64) the fifth of the blocks chosen by 16 rows held
        98.4 to 100 % of the mass of the best fifth (by 4 rows 94.0 to 100 %), in a quarter of the time on one core
    max_bytes: workspace of the gather backend, see there
    backend: the name of one of BACKENDS, which then must take the call
    returns: fp32 [B * H, Q, K]
    raises: ValueError with the reason of `MassCall.why_not`, or of the backend that was asked for
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS.run(MassCall(q, k, lse, plan, scale, key_bias, rows, max_bytes), backend)
