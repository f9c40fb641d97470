"""Sol-Attn (arXiv 2607.24027) by the fused kernel of comfy_kitchen, for calls that it can express.

That kernel chooses the blocks itself, so it serves a rule and not a BlockPlan: key blocks whose pooled score is tau
standard deviations above a query block's mean, its own block and the next on either side, and the sinks. Mean and
spread are over all key blocks. What is not chosen stays as tail "block" of `block_attend`, with one change: the logit
that a query block shares is that of keys less the mean of all block means; each row adds its own logit of that mean.
Any block order runs, laid out in blocks of 64. Its products are INT8, the published cosine to fp32 is 0.999.
"""
# B batch   N tokens   H heads   D head dim   K blocks   S slots per block

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK, HEAD_DIM, DTYPES = 64, 128, (torch.bfloat16, torch.float16)  # all that the kernel has
MAX_BYTES = 512 << 20  # of laid-out copies: 6 heads of Wan at 720p in bfloat16; a launch then has 7500 programs


@cache
def kitchen() -> tuple[ModuleType | None, str]:
    """comfy_kitchen if it has the kernel, else None; and the reason. ComfyUI has imported it long before."""
    try:
        import comfy_kitchen
    except Exception as error:  # broken installs raise more than ImportError
        return None, f"comfy_kitchen cannot be imported: {type(error).__name__}: {error}"
    if not hasattr(comfy_kitchen, "sol_attn"):
        return None, "this comfy_kitchen has no sol_attn; 0.2.40 does"
    return comfy_kitchen, ""


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    *,
    sinks: tuple[tuple[int, int], ...] = (),
    tail: str | None = "block",
    key_bias: Tensor | None = None,
    sinks_hold_bias: bool = False,
) -> str | None:
    """Why `sol_attend` cannot take this call, or None. Reads shapes only, never the device.

    tail: wanted for what is not chosen, as `block_attend` names it
    sinks_hold_bias: the caller knows that the key bias is 0 outside the sinks, where the kernel does not read it
    """
    if reason := kitchen()[1]:
        return reason
    if q.shape != k.shape or q.shape != v.shape or {k.dtype, v.dtype} != {q.dtype}:
        return "sol_attn takes q, k and v of one shape and one dtype"
    if q.dtype not in DTYPES or q.shape[-1] != HEAD_DIM:
        return f"sol_attn takes bfloat16 or float16 with head dim {HEAD_DIM}, and this is {q.dtype} with {q.shape[-1]}"
    if not kitchen()[0].sol_attn_is_available(q.device):
        return f"comfy_kitchen has no compiled sol_attn for {q.device}"
    if slots.shape[0] != 1 or slots.shape[2] > BLOCK:
        return f"sol_attn takes blocks of at most {BLOCK} tokens, the same for all heads"
    if len(sinks) > 1:
        return "sol_attn takes one run of sink blocks, and there are some on both sides of the video"
    if tail not in (None, "block"):
        return f"sol_attn has no {tail!r} tail, only 'block' or none"
    if key_bias is not None and not sinks_hold_bias:
        return "sol_attn reads a key bias in sink blocks only"
    return None


def sol_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    live: Tensor,
    *,
    tau: float,
    scale: float | None = None,
    sinks: tuple[tuple[int, int], ...] = (),
    tail: str | None = "block",
    key_bias: Tensor | None = None,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """Attention by the rule above, some heads at a time. Ask `why_not` first.

    q, k, v: [B, N, H, 128]
    slots: int32 [1, K, S], live: int32 [1, K], as in BlockPlan, of queries and keys alike; no block is empty
    tau: standard deviations; higher keeps fewer blocks
    sinks: (first, past the last) block that all see and that see all
    key_bias: fp32 [B, N], 0 outside the sinks
    returns: [B, N, H, 128] in q's dtype
    """
    tokens = pad(slots[0], (0, BLOCK - slots.shape[2]), value=-1).flatten().long()
    padding, ids = tokens < 0, tokens.clamp(min=0)

    def lay_out(x: Tensor) -> Tensor:
        """[B, N, ...] -> [B, K * 64, ...], 0 on padding, which the kernel's INT8 scales look at."""
        return x.index_select(1, ids).masked_fill_(padding.view(-1, *[1] * (x.ndim - 2)), 0)

    run = list(sinks[0]) if sinks else [0, 0]
    options = {
        "tau": tau, "scale": scale, "sink_blocks": run, "sink_q": run, "tail": tail == "block",
        "key_bias": None if key_bias is None else lay_out(key_bias), "block_len": live[0],
    }  # fmt: skip
    batch, count, heads, dim = q.shape
    out = q.new_empty(batch, count + 1, heads, dim)  # the last token takes what padding yields
    step = max(1, max_bytes // (4 * batch * len(ids) * dim * q.element_size()))
    for start in range(0, heads, step):
        some = slice(start, start + step)
        done = kitchen()[0].sol_attn(*(lay_out(x[:, :, some]) for x in (q, k, v)), **options)
        out[:, :, some].index_copy_(1, ids.masked_fill(padding, count), done)
    return out[:, :count]
