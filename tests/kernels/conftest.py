"""Random block attention problems for the tests of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, kept_lists

B, H = 2, 2
CHANCE = {"none": 0.0, "some": 0.3, "all": 1.1}


def table(blocks: list[list[int]], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots [1, K, S], live [1, K]."""
    slots = torch.full((1, len(blocks), max(width, *map(len, blocks), 1)), -1, dtype=torch.int32)
    for i, block in enumerate(blocks):
        slots[0, i, : len(block)] = torch.tensor(block)
    return slots, torch.tensor([[len(block) for block in blocks]], dtype=torch.int32)


@dataclass
class Case:
    """Blocks of random ragged sizes over a random order of the video tokens; text in a full block of its own."""

    tokens: int
    text: str = "absent"  # or "before", "after"
    kept: str = "some"  # or "none", "all"
    dim: int = 16
    dtype: torch.dtype = torch.float32
    size: int = 64
    seed: int = 0
    blocks: list[list[int]] = field(init=False)
    written: list[int] = field(init=False)  # numbers of the text blocks
    keep: torch.Tensor = field(init=False)  # bool [B * H, K, K]
    qkv: list[torch.Tensor] = field(init=False)  # [B, N, H, D] each

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed + self.tokens)
        count = 0 if self.text == "absent" else min(7, self.tokens - 1)
        first = 0 if self.text == "before" else self.tokens - count
        video = [t for t in range(self.tokens) if not first <= t < first + count]
        video = [video[i] for i in torch.randperm(len(video), generator=draw)]
        self.blocks, self.written = [], []
        while video:
            n = int(torch.randint(self.size // 2, self.size + 1, (), generator=draw))
            self.blocks.append(video[:n])
            video = video[n:]
        if count:
            self.written = [0 if self.text == "before" else len(self.blocks)]
            self.blocks.insert(self.written[0], list(range(first, first + count)))
        self.keep = torch.rand(B * H, len(self.blocks), len(self.blocks), generator=draw) < CHANCE[self.kept]
        self.keep[:, self.written] = True
        shape = B, self.tokens, H, self.dim
        self.qkv = [torch.randn(shape, generator=draw).to(self.dtype) for _ in "qkv"]

    @property
    def plan(self) -> BlockPlan:
        slots, live = table(self.blocks)
        cols, counts = kept_lists(self.keep)
        counts[:, self.written] = -1  # lists of full blocks are not read
        return BlockPlan(slots, slots, live, live, cols, counts, tuple((i, i + 1) for i in self.written))

    @property
    def bias(self) -> torch.Tensor:
        """One block gone, some tokens gone, some weighed down; the batch entries differ. [B, N]"""
        bias = torch.zeros(B, self.tokens)
        bias[0, self.blocks[-1]] = -torch.inf
        bias[1, ::3] = -torch.inf
        bias[1, 1::3] = -1.25
        return bias

    def truth(
        self, tail: str | None = None, bias: torch.Tensor | None = None, scale: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp in float64, one query block after the other, from lists of tokens."""
        bias = torch.zeros(B, self.tokens) if bias is None else bias
        out, lse = torch.zeros(self.qkv[0].shape).double(), torch.zeros(self.qkv[0].shape[:3]).double()
        for g in range(B * H):
            b, h = divmod(g, H)
            q, k, v = (x[b, :, h].double() for x in self.qkv)
            q, weight = q * (self.dim**-0.5 if scale is None else scale), bias[b].double().exp()
            mass = torch.stack([weight[block].sum() for block in self.blocks])
            means = ((weight[block] / weight[block].sum()) @ torch.cat((k, v), 1)[block] for block in self.blocks)
            mean_k, mean_v = torch.stack([*means]).nan_to_num(0).chunk(2, 1)
            for i, rows in enumerate(self.blocks):
                kept = [t for j, block in enumerate(self.blocks) if self.keep[g, i, j] for t in block]
                score, value = (q[rows] @ k[kept].T).exp() * weight[kept], v[kept]
                if tail:
                    rest = [j for j in range(len(self.blocks)) if not self.keep[g, i, j]]
                    query = q[rows] if tail == "row" else q[rows].mean(0).expand(len(rows), -1)
                    score = torch.cat((score, (query @ mean_k[rest].T).exp() * mass[rest]), 1)
                    value = torch.cat((value, mean_v[rest]))
                lse[b, rows, h] = score.sum(1).log()
                out[b, rows, h] = (score / score.sum(1, keepdim=True)).nan_to_num(0) @ value
        return out, lse


@pytest.fixture
def case() -> type[Case]:
    return Case


@pytest.fixture
def slot_table() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return table


@pytest.fixture
def assert_near() -> Callable[..., None]:
    """Every pair equal up to a tolerance relative to the largest true value; infinities must agree."""

    def check(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], tolerance: float = 1e-5) -> None:
        for x, y in zip(got, want, strict=True):
            finite = y.isfinite()
            assert torch.equal(x.isfinite(), finite)
            if finite.any():
                error = (x.double() - y.double())[finite].abs().max() / y[finite].abs().max().clamp(min=1e-3)
                assert error < tolerance, f"relative error {error:.2e}"

    return check
