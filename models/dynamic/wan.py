"""Wan's blocks with fewer heads, a narrower MLP, and an MLP for some tokens. DyDiT, arXiv 2410.03456, section 3.

Single layers are covered, not blocks: ComfyUI's own forward runs, with fewer heads in it, so the attention call goes
through all hooks. Where the paper's model norms each head, Wan's norms queries and keys over all heads; here over the
heads that are kept, and routers must have been trained so.
"""

# B batch   N tokens   C width   H heads   G groups of the MLP

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..block_visits import covered
from ..host.layers import wan_time_embedding, why_not_sliced
from .plan import BlockPlan
from .routers import BlockRouter
from .tokens import choose, count, put, take
from .width import Channels, Cuts, columns, norm, rows

FAMILIES = ("wan", "wan_5b")   # S2V and HuMo have blocks of their own
TIMESTEPS = 1000.0  # what Wan is given for sigma 1
LINEARS = ("q", "k", "v", "o")


@dataclass
class Choice:
    """Chosen tokens of the block that runs now."""

    chosen: Tensor | None = None
    tokens: int = 0


def why_not_fit(model: nn.Module, routers: Sequence[BlockRouter], groups: int) -> str | None:
    """Why routers do not fit a model. groups: of the MLP, 1 without routers for them"""
    if len(routers) != len(model.blocks):
        return "the router file is for a model with another number of blocks"
    wanted = {("heads", model.num_heads - 1, model.dim), ("groups", groups - 1, model.dim)}
    for router in routers:
        found = {(n, *getattr(router, n).weight.shape) for n in ("heads", "groups") if getattr(router, n)}
        if not found <= wanted or (router.tokens and router.tokens.first.weight.shape[1] != model.dim):
            return "the router file is for a model with other sizes"
    if model.ffn_dim % groups:
        return "the MLP of the model cannot be cut into as many groups as the router file has"
    return None


def why_not_layers(model: nn.Module) -> str | None:
    """Why the weights of this model, as they are now, cannot be taken apart."""
    for block in model.blocks:
        attention = block.self_attn
        for layer in (*(getattr(attention, name) for name in LINEARS), block.ffn[0], block.ffn[2]):
            if reason := why_not_sliced(layer):
                return reason
    return None


def embeddings(model: nn.Module, sigmas: Sequence[float], device: torch.device) -> Tensor:
    """Time embeddings of noise levels. returns: [S, C] float32"""
    return wan_time_embedding(model, torch.tensor(sigmas, device=device) * TIMESTEPS)


@contextmanager
def dynamic_blocks(model: nn.Module, routers: Sequence[BlockRouter], plans: Sequence[BlockPlan], groups: int,
                   cut: Cuts) -> Iterator[None]:  # fmt: skip
    """Within, each block computes what its plan says."""
    with ExitStack() as stack:
        for block, router, plan in zip(model.blocks, routers, plans, strict=True):
            if plan.heads is not None:
                stack.enter_context(fewer_heads(block.self_attn, plan.heads, cut))
            if plan.groups is not None or plan.share < 1.0:
                chosen = plan.groups and cut(plan.groups, model.ffn_dim // groups)
                stack.enter_context(covered(_mlp(block, router, plan.share, chosen)))
        yield


@contextmanager
def fewer_heads(attention: nn.Module, heads: tuple[int, ...], cut: Cuts) -> Iterator[None]:
    """Within, a self attention computes these heads only."""
    chosen, before = cut(heads, attention.head_dim), attention.num_heads
    layers = [(getattr(attention, name), rows) for name in "qkv"] + [(attention.o, columns)]
    layers += [(n, norm) for n in (attention.norm_q, attention.norm_k) if not isinstance(n, nn.Identity)]
    with covered((layer, cover(layer, chosen)) for layer, cover in layers):
        attention.num_heads = len(heads)
        try:
            yield
        finally:
            attention.num_heads = before


def _mlp(block: nn.Module, router: BlockRouter, share: float, chosen: Channels | None) -> list:
    """The layers of an MLP that are covered, for a share of the tokens and the chosen channels."""
    first, last = block.ffn[0], block.ffn[2]
    narrow = [] if chosen is None else [(first, rows(first, chosen)), (last, columns(last, chosen))]
    if share >= 1.0:
        return narrow
    now = Choice()

    def see(forward):
        def norm2(x: Tensor) -> Tensor:
            now.tokens = x.shape[1]
            now.chosen = choose(router.tokens.logits(x), count(share, now.tokens))
            return forward(x)

        return norm2

    def gather(forward):
        return lambda x: forward(take(x, now.chosen))

    def scatter(forward):
        return lambda x: put(forward(x), now.chosen, now.tokens)

    return [*narrow, (block.norm2, see), (first, gather), (last, scatter)]
