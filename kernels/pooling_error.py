"""What the pooled mean of a key block would do to each query in the block's place: the error of SVG-EAR (arXiv
2603.08982), by which blocks are worth their exact attention.

Sum over the tokens t of a block of |exp(q k_mean) v_mean - exp(q k_t) v_t|^2. With a and e for the exponentials it is
|(a - e) v_mean + e (v_mean - v_t)|^2: one product with the keys, and no difference of large numbers.
"""
# B batch   N tokens   H heads   D head dim   G = B * H   R heads of a call   C queries   P key blocks
# S slots per block

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_pooling_error
from .dispatch import Backend, Dispatch
from .head_rows import head_rows

MAP_BYTES = 64 << 20  # of what there is for each query and slot, in torch


@dataclass(frozen=True)
class KeyBlocks:
    """Keys and values, and their blocks.

    k, v: [B, N, H, D]
    slots: int32 [G, P, S], token numbers, -1 is padding
    mean, value: fp32 [G, P, D], of the keys and of the values of a block
    weight: fp32 [G or 1, P, S], exp(key bias), 0 on padding
    """

    k: Tensor
    v: Tensor
    slots: Tensor
    mean: Tensor
    value: Tensor
    weight: Tensor


@dataclass(frozen=True)
class ErrorCall:
    """The arguments of `pooling_error`."""

    query: Tensor
    keys: KeyBlocks
    first: int
    scale: float

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.keys.k

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        heads, blocks = self.keys.slots.shape[:2]
        if self.query.dtype != torch.float32 or self.query.ndim != 3 or self.query.shape[2] != self.keys.k.shape[3]:
            return f"the queries are {self.query.dtype} {list(self.query.shape)}; they must be float32 [R, C, D]"
        if self.first + len(self.query) > heads:
            return f"heads {self.first} to {self.first + len(self.query) - 1} are asked for; there are {heads}"
        if not self.keys.mean.shape[:2] == self.keys.value.shape[:2] == (heads, blocks):
            return "keys, values and slots are not of the same blocks"
        return None


def pooling_error_reference(query: Tensor, keys: KeyBlocks, first: int, scale: float) -> Tensor:
    """In float64, one block at a time, by the definition; the contract is that of `pooling_error`."""
    found = torch.zeros(*query.shape[:2], keys.slots.shape[1], dtype=torch.float64)
    for r, some in enumerate(query.double()):
        b, h = divmod(first + r, keys.k.shape[2])
        k, v = (x[b, :, h].double() for x in (keys.k, keys.v))
        slots, weights = keys.slots[first + r], keys.weight[(first + r) % len(keys.weight)].double()
        read = slots[weights > 0].long()
        top = scale * (some @ k[read].T).amax(1, keepdim=True) if len(read) else 0
        for j, (line, weight) in enumerate(zip(slots, weights, strict=True)):
            t, w = line[weight > 0].long(), weight[weight > 0]
            a = (scale * some @ keys.mean[first + r, j].double()[:, None] - top).exp()[..., None]
            e = (scale * some @ k[t].T - top).exp()[..., None]
            found[r, :, j] = (w[:, None] * (a * keys.value[first + r, j].double() - e * v[t])).square().sum((1, 2))
    return found.float()


def pooling_error(
    query: Tensor, keys: KeyBlocks, first: int, scale: float, *, backend: str | None = None
) -> Tensor:  # fmt: skip
    """The error that the mean of each block makes for each query, its tokens weighted by `keys.weight`.

    Of each query only up to a factor: logits are taken from the largest of any token that has a weight.

    query: fp32 [R, C, D], of the heads first .. first + R
    backend: the name of one of BACKENDS, which then must take the call
    returns: fp32 [R, C, P]
    raises: ValueError with the reason of `ErrorCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(ErrorCall(query, keys, first, scale), backend)


def _in_torch(call: ErrorCall) -> Tensor:
    rows = head_rows(call.keys.k), head_rows(call.keys.v)
    out = call.query.new_empty(*call.query.shape[:2], call.keys.slots.shape[1])
    for r, some in enumerate(call.query):
        which = torch.full((1,), call.first + r, device=out.device)
        k, v = (x.take(call.keys.slots[call.first + r][None], which)[0].float() for x in rows)  # padding: any token
        _of_head(some, k, v, call, call.first + r, out[r])
    return out


def _of_head(query: Tensor, k: Tensor, v: Tensor, call: ErrorCall, head: int, out: Tensor) -> None:
    """query: [C, D]; k, v: fp32 [P, S, D]; out: [C, P]"""
    keys, scale = call.keys, call.scale
    mean, weight = keys.value[head], keys.weight[head % len(keys.weight)]
    away, weight_2 = mean[:, None] - v, weight.square()  # P S D
    middle, lean, spread = (
        weight_2 * x
        for x in (mean.square().sum(-1, keepdim=True), (away * mean[:, None]).sum(-1), away.square().sum(-1))
    )
    every, dead = k.flatten(0, 1).T * scale, (weight == 0).flatten()
    step = max(1, MAP_BYTES // (4 * weight.numel()))
    for start in range(0, len(query), step):
        some = query[start : start + step]
        logit = (some @ every).masked_fill_(dead, -torch.inf)
        pooled = scale * some @ keys.mean[head].T
        top = logit.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        e = logit.sub_(top).exp_().view(-1, *weight.shape)
        gap = pooled.sub_(top).clamp_(max=0).exp_()[..., None] - e
        out[start : start + step] = (gap.square() * middle + 2 * gap * e * lean + e.square() * spread).sum(-1)


BACKENDS = Dispatch(
    "The error of pooling",
    (
        Backend(triton_pooling_error.NAME, triton_pooling_error.why_not, triton_pooling_error.errors),
        Backend("torch", lambda call: None, _in_torch),
    ),
)
