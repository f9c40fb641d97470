"""The kernels beside attention on this card, each against the same operation in torch on the CPU.

Pooling, lists from scores and from maps, the nearest centroid, the error of pooling and block masses, on ragged blocks
with a key bias. Lists must be equal, of labels all but those between two centroids at nearly one distance; for the rest
a row tells the relative L2 distance.
"""
# B batch   N tokens   H heads   D head dim   K blocks   C centroids

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from interspatial.kernels.block_attend import block_attend_reference
from interspatial.kernels.block_mass import block_mass
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.keep_top import keep_top
from interspatial.kernels.list_map import list_map
from interspatial.kernels.nearest import nearest
from interspatial.kernels.pool_blocks import pool_blocks, pool_squares
from interspatial.kernels.pooling_error import KeyBlocks, pooling_error
from torch import Tensor

from .checks import BATCH, HEADS, blocks, distance
from .stage import Bench, Stage

TOKENS, CENTROIDS = 3001, 90
BOUND = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
LABELS = 2e-3  # share of tokens whose two nearest centroids half precision may tell apart differently

Check = tuple[str, str, Callable[[str, torch.device], object], Callable[[object, object], tuple[float, float]]]


def near(bound: float) -> Callable[[object, object], tuple[float, float]]:
    """Largest distance of pairs of tensors, and what it may be."""
    return lambda got, want: (max(distance(x.float(), y.float()) for x, y in zip(got, want, strict=True)), bound)


def same_lists(got: tuple, want: tuple) -> tuple[float, float]:
    """Share of entries within the counts that differ."""
    (cols, counts), (right, its_counts) = got, want
    if its_counts is None:
        return float((cols != right).float().mean()), 0.0
    past = torch.arange(right.shape[-1]) >= its_counts[..., None]
    wrong = (cols.masked_fill(past, 0) != right.masked_fill(past, 0)).float().mean() + (counts != its_counts).sum()
    return float(wrong), 0.0


def same_labels(got: tuple, want: tuple) -> tuple[float, float]:
    return float((got[0] != want[0]).float().mean()), LABELS


def checks() -> Iterator[Check]:
    """What, setting, how to compute it with a backend on a device, how to compare."""
    draw = torch.Generator().manual_seed(5)
    normal = lambda *size: torch.randn(size, generator=draw)  # noqa: E731
    slots = blocks(TOKENS, 64, False, draw)[None]
    bias = torch.zeros(BATCH, TOKENS)
    bias[0, ::5], bias[1, 1::3] = -torch.inf, -0.75
    for dtype in BOUND:
        x, y = (normal(BATCH, TOKENS, HEADS, 128).to(dtype) for _ in "xy")
        word = str(dtype)[6:]
        for name, pool in (("pool_blocks", pool_blocks), ("pool_squares", pool_squares)):
            compute = lambda way, at, x=x, pool=pool: pool(x.to(at), slots.to(at), bias.to(at), backend=way)  # noqa: E731
            yield name, word, compute, near(2e-5)
        centroids = normal(BATCH * HEADS, CENTROIDS, 128)
        yield "nearest", word, (lambda way, at, x=x, c=centroids: (nearest(x.to(at), c.to(at), backend=way),)), \
            same_labels
        yield "pooling_error", word, (lambda way, at, x=x, y=y, c=centroids: _errors(x, y, c, slots, way, at)), \
            near(BOUND[dtype])
        yield "block_mass", word, (lambda way, at, x=x, y=y: _masses(x, y, slots, bias, way, at)), near(BOUND[dtype])
    score = normal(3, 300, 345)
    score[0, :, 7], score[1, 3] = torch.nan, -torch.inf
    for spare in (0, 41):
        options = {"spare": spare, "first": 11, "last": 311}
        yield "keep_top", f"spare {spare}", \
            (lambda way, at, options=options: keep_top(score.to(at), 37, **options, backend=way)), same_lists
    keep = normal(4, 200, 700) > 0.8
    yield "list_map", "", (lambda way, at: list_map(keep.to(at), backend=way)), same_lists


def _errors(k: Tensor, v: Tensor, query: Tensor, slots: Tensor, way: str | None, at: torch.device) -> tuple[Tensor]:
    k, v, slots = k.to(at), v.to(at), slots.to(at).expand(BATCH * HEADS, -1, -1).contiguous()
    mean, value = (pool_blocks(x, slots)[0].transpose(1, 2).flatten(0, 1).contiguous() for x in (k, v))
    keys = KeyBlocks(k, v, slots, mean, value, (slots >= 0).float())
    return (pooling_error(query.to(at) * 0.3, keys, 0, 128**-0.5, backend=way),)


def _masses(q: Tensor, k: Tensor, slots: Tensor, bias: Tensor, way: str | None, at: torch.device) -> tuple[Tensor]:
    live = (slots >= 0).sum(-1).int()
    every = torch.arange(slots.shape[1], dtype=torch.int32).expand(1, slots.shape[1], -1).contiguous()
    plan = BlockPlan(slots, slots, live, live, every)
    _, lse = block_attend_reference(q, k, k, plan, key_bias=bias, return_lse=True)
    plan = BlockPlan(*(x.to(at) for x in (slots, slots, live, live, every)))
    return (block_mass(q.to(at), k.to(at), lse.to(at), plan, key_bias=bias.to(at), backend=way),)


@torch.inference_mode()
def run(bench: Bench) -> None:
    card, cpu = torch.device(bench.device), torch.device("cpu")
    for what, setting, compute, compare in checks():
        if bench.has(what=what, setting=setting) or bench.left() < 0:
            continue
        with bench.attempt(what=what, setting=setting):
            got = compute("triton" if card.type == "cuda" else None, card)
            want = compute(None, cpu)
            error, bound = compare(*([x if x is None else x.cpu() for x in out] for out in (got, want)))
            bench.put(what=what, setting=setting, error=error, bound=bound, right=error <= bound)


STAGES = (Stage("checks_others", __doc__.partition("\n\n")[2].replace("\n", " ").strip(), 60, run),)
