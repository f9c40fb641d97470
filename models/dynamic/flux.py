"""Flux blocks whose MLP computes some image tokens. DyFLUX, arXiv 2504.06803, on ComfyUI's double and single blocks.

Double blocks: the MLP of the image. Single blocks: the MLP half of the first linear layer, and all of the second, so
that a token that is not chosen gets nothing from the block; attention looks at all tokens, text is always computed.
In double blocks the selector sees the text as it enters the block: ComfyUI moves the image first.
"""

# B batch   N image tokens   M text tokens   K chosen tokens, with the text in single blocks   C width   F MLP channels

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..block_visits import covered
from ..host.layers import layer_weights, why_not_sliced
from .plan import BlockPlan
from .routers import BlockRouter, TokenSelector
from .tokens import choose, count, put, take
from .width import Cuts

FAMILIES = ("flux",)


@dataclass
class Seen:
    """What the parts of a forward show to the parts that need it.

    text: [B, M, C] of the block that runs, or that ran last    vec: [B, C]    chosen: [B, K]    tokens: all of them
    """

    text: Tensor | None = None
    vec: Tensor | None = None
    chosen: Tensor | None = None
    tokens: int = 0


def why_not_fit(model: nn.Module, routers: Sequence[BlockRouter], groups: int) -> str | None:
    """Why routers do not fit a model."""
    if len(routers) != len(model.double_blocks) + len(model.single_blocks):
        return "the router file is for a model with another number of blocks"
    width = model.hidden_size
    if any(r.tokens and r.tokens.router.weight.shape[1] != width for r in routers):
        return "the router file is for a model with other sizes"
    params = model.params
    if params.global_modulation or params.mlp_silu_act or params.yak_mlp:
        return "the blocks of this model are not those of Flux 1"
    return None


def why_not_layers(model: nn.Module) -> str | None:
    """Why the weights of this model, as they are now, cannot be taken apart."""
    return next((r for r in (why_not_sliced(block.linear1) for block in model.single_blocks) if r), None)


def embeddings(model: nn.Module, sigmas: Sequence[float], device: torch.device) -> Tensor:
    """No width hangs on the time here. returns: [S, 0]"""
    return torch.zeros(len(sigmas), 0, device=device)


@contextmanager
def dynamic_blocks(model: nn.Module, routers: Sequence[BlockRouter], plans: Sequence[BlockPlan], groups: int,
                   cut: Cuts) -> Iterator[None]:  # fmt: skip
    """Within, each block computes what its plan says. groups, cut: for widths, which Flux routers do not have"""
    seen, doubles = Seen(), len(model.double_blocks)
    with ExitStack() as stack:
        stack.enter_context(covered(_watch(model, seen)))
        for i, block in enumerate((*model.double_blocks, *model.single_blocks)):
            if plans[i].share < 1.0:
                cover = _double if i < doubles else _single
                stack.enter_context(covered(cover(block, routers[i].tokens, plans[i].share, seen)))
        yield


def _watch(model: nn.Module, seen: Seen) -> list:
    """The modulations show the time, the text norms the text."""
    layers = [(block.img_mod, "vec") for block in model.double_blocks]
    layers += [(block.modulation, "vec") for block in model.single_blocks]
    return [(layer, _noting(seen, name)) for layer, name in layers] + [
        (block.txt_norm1, _noting(seen, "text")) for block in model.double_blocks
    ]


def _noting(seen: Seen, name: str) -> Callable:
    def cover(forward: Callable) -> Callable:
        def noting(x: Tensor) -> Tensor:
            setattr(seen, name, x)
            return forward(x)

        return noting

    return cover


def _double(block: nn.Module, selector: TokenSelector, share: float, seen: Seen) -> list:
    def see(forward):
        def img_norm2(image: Tensor) -> Tensor:
            seen.tokens = image.shape[1]
            seen.chosen = choose(selector.logits(image, seen.text, seen.vec), count(share, seen.tokens))
            return forward(image)

        return img_norm2

    return [
        (block.img_norm2, see),
        (block.img_mlp[0], lambda forward: lambda x: forward(take(x, seen.chosen))),
        (block.img_mlp[2], lambda forward: lambda x: put(forward(x), seen.chosen, seen.tokens)),
    ]


def _single(block: nn.Module, selector: TokenSelector, share: float, seen: Seen) -> list:
    def see(forward):
        def pre_norm(x: Tensor) -> Tensor:
            words, seen.tokens = seen.text.shape[1], x.shape[1]
            text, image = x[:, :words], x[:, words:]
            chosen = choose(selector.logits(image, text, seen.vec), count(share, image.shape[1]))
            always = torch.arange(words, device=x.device).expand(len(x), -1)
            seen.chosen = torch.cat((always, chosen + words), 1)
            return forward(x)

        return pre_norm

    def split(_):
        def linear1(x: Tensor) -> Tensor:
            qkv = 3 * block.hidden_size
            with layer_weights(block.linear1, x) as (weight, bias):
                first, last = (None, None) if bias is None else (bias[:qkv], bias[qkv:])
                out = x.new_zeros(*x.shape[:2], len(weight))
                out[..., :qkv] = F.linear(x, weight[:qkv], first)
                mlp = F.linear(take(x, seen.chosen), weight[qkv:], last)
            out[..., qkv:] = put(mlp, seen.chosen, seen.tokens)   # the layers between the two work token by token
            return out

        return linear1

    return [
        (block.pre_norm, see),
        (block.linear1, split),
        (block.linear2, lambda forward: lambda x: put(forward(take(x, seen.chosen)), seen.chosen, seen.tokens)),
    ]
