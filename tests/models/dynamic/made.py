"""Router files with known decisions, for tests."""

from __future__ import annotations

import torch
from interspatial.models.dynamic.router_file import RouterFile
from interspatial.models.dynamic.routers import Affine, BlockRouter, TokenHead, TokenSelector


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def always(on: list[bool], width: int) -> Affine:
    """A router that decides the same at every noise level. on: all but the first part"""
    return Affine(torch.zeros(len(on), width), torch.tensor([1.0 if o else -1.0 for o in on]))


def token_head(width: int, seed: int = 1) -> TokenHead:
    hidden = max(width // 16, 1)
    return TokenHead(Affine(normal(hidden, width, seed=seed), normal(hidden, seed=seed + 1)),
                     Affine(normal(1, hidden, seed=seed + 2), torch.zeros(1)))  # fmt: skip


def selector(width: int, seed: int = 1) -> TokenSelector:
    return TokenSelector(Affine(normal(4 * width, width, seed=seed) * 0.1, normal(4 * width, seed=seed + 1) * 0.1),
                         Affine(1 + 0.1 * normal(width, seed=seed + 2), 0.1 * normal(width, seed=seed + 3)),
                         Affine(normal(1, width, seed=seed + 4), torch.zeros(1)))  # fmt: skip


def dydit(blocks: int, width: int, heads: list[bool], groups: list[bool], tokens: bool = True) -> RouterFile:
    """The same decisions in each block."""
    routers = tuple(
        BlockRouter(always(heads, width) if heads else None, always(groups, width) if groups else None,
                    token_head(width, 10 * i) if tokens else None)
        for i in range(blocks)
    )  # fmt: skip
    return RouterFile("dydit", routers, len(groups) + 1 if groups else 1)
