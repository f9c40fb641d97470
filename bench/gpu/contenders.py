"""Everything that computes sparse attention on the machine, on the same tensors at the same density."""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block   V video blocks

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from interspatial.kernels import sol_attend, triton_attend
from interspatial.kernels.attend_call import AttendCall
from interspatial.kernels.block_plan import BlockPlan, kept_mask
from interspatial.kernels.triton_tiles import Tile
from interspatial.models.attention import METHODS, Job, SparseAttention
from interspatial.models.attention.draft import DOUBLE, SINGLE
from interspatial.models.attention.orders import BlockOrder, strip
from interspatial.models.layout import TokenLayout
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from bench.gpu.calls import STRIPS, Sampling, attend_blocks, method_of, steady
from bench.gpu.dense import compiled_flex

SOL_BLOCK = 64


@dataclass(frozen=True)
class Scene:
    """q, k, v: [1, N, H, D] of a layout"""

    layout: TokenLayout
    q: Tensor
    k: Tensor
    v: Tensor
    device: str

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v


@dataclass(frozen=True)
class Contender:
    """plan: what it computes exactly, None where it does not tell    tile: of the kernel, where one is asked for"""

    call: Callable[[], Tensor]
    plan: BlockPlan | None = None
    tile: Tile | None = None


def strips(layout: TokenLayout, device: str) -> BlockOrder:
    """Blocks of 64 tokens."""
    return strip(layout).to(device)


def plan_of(scene: Scene, density: float, query_blocks: str = SINGLE) -> BlockPlan:
    """What draft chooses: the best blocks of keys for each block of queries, of 64 or (DOUBLE) of 128 tokens."""
    call = Sampling(*scene.qkv, scene.layout).call(0)
    return METHODS["draft"](density=density, query_blocks=query_blocks).plan(Job(call, STRIPS, "row", density))


def kernel(scene: Scene, plan: BlockPlan, tail: str | None, choice: Tile | None, **more: object) -> Tensor:
    """The Triton kernel with a tile, or with the one that its tuner finds."""
    call = AttendCall(*scene.qkv, plan, scene.q.shape[-1] ** -0.5, tail=tail, **more)
    if reason := triton_attend.why_not(call):
        raise RuntimeError(reason)
    return triton_attend.attend(call, tile=choice)[0]


def tile_contenders(scene: Scene, plan: BlockPlan, name: str) -> dict[str, Contender]:
    """Every tile that the kernel could take, with the tail of each row, and with int8 products where it has them."""
    call = AttendCall(*scene.qkv, plan, scene.q.shape[-1] ** -0.5, tail="row")
    if reason := triton_attend.why_not(call):
        raise RuntimeError(reason)
    found = {}
    for choice in triton_attend.offered(call):
        found[f"{name}, {choice}"] = Contender(partial(kernel, scene, plan, "row", choice), plan, choice)
        if choice.boxes:
            in_int8 = partial(kernel, scene, plan, "row", choice, int8=True)
            found[f"{name} int8, {choice}"] = Contender(in_int8, plan, choice)
    return found


def block_contenders(
    scene: Scene, plan: BlockPlan, name: str, choice: Tile | None, choice_int8: Tile | None
) -> dict[str, Contender]:
    """Block attention over a plan as a method calls it, with the other tails, and with int8 products.

    choice: for the other tails, so that the tuner compiles all of its tiles for one tail alone; None: no tile ran
    choice_int8: the fastest with int8 products; None: none has them
    """
    found = {"row": partial(attend_blocks, *scene.qkv, plan, "row", scene.device)}
    for word, tail in (("block", "block"), ("off", None)):
        by_tile = partial(kernel, scene, plan, tail, choice)
        found[word] = by_tile if choice else partial(attend_blocks, *scene.qkv, plan, tail, scene.device)
    if choice_int8:
        found["row, int8"] = partial(kernel, scene, plan, "row", choice_int8, int8=True)
    return {f"{name}, tail {word}": Contender(call, plan) for word, call in found.items()}


def flex_contenders(scene: Scene, plan: BlockPlan, name: str) -> dict[str, Contender]:
    """FlexAttention over the same blocks, without what is dropped: with laying its tokens out, and without."""
    flexible = Flex(plan, scene)
    laid_out = flexible.lay_out(*scene.qkv)
    return {
        name: Contender(lambda: flexible.back(flexible.attend(*flexible.lay_out(*scene.qkv))), plan),
        f"{name}, laid out before": Contender(lambda: flexible.attend(*laid_out), plan),
    }


class Flex:
    """Tokens block by block, padded to `BLOCK`; blocks without padding need no mask, as its authors advise."""

    def __init__(self, plan: BlockPlan, scene: Scene) -> None:
        size = 128 if plan.q_slots.shape[2] > 64 else 64
        self.device, live = scene.device, plan.k_live[0]
        self.q_slots, self.k_slots = (pad(x[0].long(), (0, n - x.shape[2]), value=-1).flatten()
                                      for x, n in ((plan.q_slots, size), (plan.k_slots, 64)))  # fmt: skip
        keep = kept_mask(plan)
        whole, ragged = (_lists(keep & chosen) for chosen in (live == 64, live < 64))

        def inside(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return k % 64 < live[k // 64]

        self.mask = BlockMask.from_kv_blocks(*ragged, *whole, BLOCK_SIZE=(size, 64), mask_mod=inside)
        # Its default tile on 9.0 has 128 queries and refuses blocks of 64.
        self.options = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3} if size == 64 else None
        self.places = torch.empty(scene.q.shape[1], dtype=torch.long, device=scene.q.device)
        held = self.q_slots >= 0
        self.places[self.q_slots[held]] = torch.arange(len(held), device=scene.q.device)[held]

    def lay_out(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """[1, H, padded N, D]"""
        slots = self.q_slots, self.k_slots, self.k_slots
        return [x[:, at.clamp(min=0)].transpose(1, 2) for x, at in zip((q, k, v), slots, strict=True)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = None if self.device == "cpu" else self.options
        return compiled_flex(self.device)(q, k, v, block_mask=self.mask, kernel_options=options)

    def back(self, out: Tensor) -> Tensor:
        """[1, H, padded N, D] -> [1, N, H, D]"""
        return out.transpose(1, 2)[:, self.places]


def _lists(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [1, H, Q] and columns [1, H, Q, K], kept ones first. keep: bool [H, Q, K]"""
    cols = keep.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return keep.sum(-1, dtype=torch.int32)[None], cols.int()[None]


def sol_contenders(scene: Scene, density: float) -> dict[str, Contender]:
    """comfy-kitchen's fused kernel at the same share of blocks, on tokens in raster order as its node calls it."""
    kitchen, reason = sol_attend.kitchen()

    def sol(**options: object) -> Tensor:
        if kitchen is None:
            raise RuntimeError(reason)
        text = [scene.layout.video.stop // SOL_BLOCK, -(-scene.layout.tokens // SOL_BLOCK)]
        sinks = text if scene.layout.tokens > scene.layout.video.stop else [0, 0]
        return kitchen.sol_attn(*scene.qkv, topk_ratio=density, sink_blocks=sinks, sink_q=sinks, **options)

    return {
        "sol_attn": Contender(sol),
        "sol_attn, tail off": Contender(lambda: sol(tail=False)),
        "sol_attn, 256 tokens more": Contender(lambda: sol(token_aug=256)),
    }


def whole_contenders(scene: Scene, density: float, tail: str | None = "row") -> dict[str, Contender]:
    """Selection and kernel in one call, which is what a user gets: the method alone, and all that its node does."""
    found = {}
    for name, query_blocks in (("draft", SINGLE), ("draft double", DOUBLE)):
        ready = steady("draft", density, Sampling(*scene.qkv, scene.layout), tail, query_blocks=query_blocks)
        ready.attend()  # for its plan
        found[f"{name}, all in"] = Contender(ready.attend, ready.plan)
    sampling = Sampling(*scene.qkv, scene.layout)
    chosen = method_of("draft", density, sampling, query_blocks=DOUBLE)
    node, call = SparseAttention(chosen, blocks=STRIPS, tail=tail), sampling.call(0)

    def as_node() -> Tensor:
        if reason := node.why_not(call):
            raise RuntimeError(f"It stands aside: {reason}.")
        return node.attend(call)

    return {**found, "draft double, as its node": Contender(as_node)}
