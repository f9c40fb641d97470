"""Attention over a kept list of key blocks; what is not kept can stay in the softmax as one pooled key per block.

One operation for every block-sparse method: a method only writes a BlockPlan. The pooled tail follows Sol-Attn
(arXiv 2607.24027) and SVG-EAR (arXiv 2603.08982); unlike both it honours a key bias and ragged blocks anywhere.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block
# G = 1 (geometry shared by all heads) or B * H   R rows: (head, query block) pairs   W keys that a row sees

from __future__ import annotations

import torch
from torch import Tensor

from . import gather_attend, triton_attend
from .attend_call import AttendCall, Reshape, Tail
from .block_plan import BlockPlan, kept_mask
from .dispatch import Backend, Dispatch

BACKENDS = Dispatch(
    "Block attention", tuple(Backend(way.NAME, way.why_not, way.attend) for way in (triton_attend, gather_attend))
)


def block_attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    tail: Tail | None = None,
    reshape: Reshape | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The whole score matrix of one head at a time; the contract is that of `block_attend`."""
    batch, tokens, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    key_bias = torch.zeros(k.shape[:2], device=k.device) if key_bias is None else key_bias.float()
    keep = kept_mask(plan)
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:3], device=q.device)
    for g in range(batch * heads):
        b, h = divmod(g, heads)
        query, key, value = q[b, :, h].float(), k[b, :, h].float(), v[b, :, h].float()
        in_query = _membership(plan.q_slots[g % len(plan.q_slots)], tokens)  # [Q, N]
        in_key = _membership(plan.k_slots[g % len(plan.k_slots)], k.shape[1])  # [K, N]
        seen = in_query.T @ keep[g % len(keep)].float()  # [N, K]
        score = scale * query @ key.T + key_bias[b]
        score = score.masked_fill(seen @ in_key == 0, -torch.inf)
        if tail:
            weight = in_key * key_bias[b].exp()  # [K, N]
            mass = weight.sum(-1, keepdim=True)
            mean_key, mean_value = weight @ key / mass.clamp(min=1e-30), weight @ value / mass.clamp(min=1e-30)
            if tail == "block":
                query = in_query.T @ (in_query @ query / in_query.sum(-1, keepdim=True).clamp(min=1))
            pooled = scale * query @ mean_key.T + mass.T.log()
            score = torch.cat((score, pooled.masked_fill(seen > 0, -torch.inf)), -1)
            value = torch.cat((value, mean_value))
        lse[b, :, h] = score.logsumexp(-1)
        row = (score - lse[b, :, h, None]).exp().nan_to_num(0) @ value
        if reshape:
            row *= reshape.rho[b, :, h, None].float().clamp(max=1)
            row += 0 if reshape.residual is None else reshape.residual[b, :, h].float()
        out[b, :, h] = row.to(q.dtype)
    return (out, lse) if return_lse else out


def _membership(slots: Tensor, tokens: int) -> Tensor:
    """1 where the token sits in the block. slots: [K, S]; returns fp32 [K, N]."""
    return (slots[..., None] == torch.arange(tokens, device=slots.device)).any(1).float()


def block_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    tail: Tail | None = None,
    reshape: Reshape | None = None,
    return_lse: bool = False,
    max_bytes: int | None = None,
    int8: bool = False,
    key_means: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax over the keys in the kept blocks, by the first backend that can take the call.

    tail "row": each block that is not kept enters the softmax as one key, its mean, with the log of its live weight
    added to the logit and its mean value; "block": the same, but all rows of a query block share the logit of their
    mean. A row that nothing is left for is 0, with lse -inf. Accumulates in fp32.

    q, k, v: [B, N, H, D]
    plan: one that `check_plan` accepts
    scale: of the logits; None: D ** -0.5
    key_bias: fp32 [B, N], added to the logits, -inf allowed
    reshape: after the softmax, of rows that see everything too; excludes a tail. It does not change the lse
    max_bytes: workspace of the gather backend, see there
    int8: the products of queries and keys may be taken in int8 where a backend is faster for it: keys less their mean
        over all tokens, rounded by one step size a block, queries by one a token, as in SageAttention (arXiv
        2410.02367). 1.1 % of relative L2 on normal numbers of head dim 128
    key_means: what `pool_blocks` returned for k, the plan's k_slots and the key bias, if that is known; for a tail
    backend: the name of one of BACKENDS, which then must take the call
    returns: [B, N, H, D] in q's dtype; with return_lse also the natural log-sum-exp of all logits, fp32 [B, N, H]
    raises: ValueError with the reason of `AttendCall.why_not`, or of the backend that was asked for
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = AttendCall(q, k, v, plan, scale, key_bias, tail, reshape, return_lse, max_bytes, int8, key_means)
    out, lse = BACKENDS.run(call, backend)
    return (out, lse) if return_lse else out


def backends(call: AttendCall) -> dict[str, str | None]:
    """Why not, for every backend in order of preference; None where it takes the call."""
    return BACKENDS.reasons(call)
