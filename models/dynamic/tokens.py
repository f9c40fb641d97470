"""A fixed number of tokens, chosen by logits: taken out of their sequence, and put back among zeros.

The count comes from a share and not from a threshold, so shapes do not depend on the content: nothing waits for the
device, and prompts that are computed together get what they would get alone.
"""

# B batch   N tokens   K chosen tokens   C width

from __future__ import annotations

import math

import torch
from torch import Tensor


def count(share: float, tokens: int) -> int:
    """Tokens that a share of them is, rounded up, at least one."""
    return max(1, min(tokens, math.ceil(share * tokens - 1e-6)))  # 0.7 * 10 is 7.000000000000001


def choose(logits: Tensor, k: int) -> Tensor:
    """The k tokens of each row with the highest logits. logits: [B, N] -> [B, K]"""
    return logits.topk(k, -1, sorted=False).indices


def take(x: Tensor, chosen: Tensor) -> Tensor:
    """x: [B, N, C], chosen: [B, K] -> [B, K, C]"""
    flat = _flat(chosen, x.shape[1])
    return x.reshape(-1, x.shape[-1]).index_select(0, flat).view(*chosen.shape, x.shape[-1])


def put(y: Tensor, chosen: Tensor, tokens: int) -> Tensor:
    """y: [B, K, C], chosen: [B, K] -> [B, tokens, C], zero for the tokens that were not chosen"""
    out = y.new_zeros(len(y) * tokens, y.shape[-1])
    return out.index_copy_(0, _flat(chosen, tokens), y.flatten(0, 1)).view(len(y), tokens, y.shape[-1])


def _flat(chosen: Tensor, tokens: int) -> Tensor:
    """Places in all rows behind each other: whole rows move at once, which gather along C does not do. -> [B * K]"""
    return (chosen + torch.arange(len(chosen), device=chosen.device)[:, None] * tokens).flatten()
