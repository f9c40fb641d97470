"""Block attention against the best dense attention and against other sparse attention, at the shapes of real models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan, kept_share
from interspatial.kernels.triton_tiles import Tile
from interspatial.models.attention.draft import DOUBLE
from torch import Tensor

from bench.gpu.activations import exact, held, sampled_rows, structured
from bench.gpu.calls import remember_tiles
from bench.gpu.contenders import (
    Contender,
    Scene,
    block_contenders,
    flex_contenders,
    plan_of,
    sol_contenders,
    strips,
    tile_contenders,
    whole_contenders,
)
from bench.gpu.dense import best_dense, forget_compiled
from bench.gpu.shapes import shape_of
from bench.gpu.stage import ROUNDS, Bench, Stage
from bench.gpu.timing import NO_TIME, Ran, race, relative

DENSITIES = (0.2, 0.1, 0.3)
ORDER = ("wan720", "hunyuan720", "wan480", "cogvideox15")
ROWS = 256
TILE_ROUNDS = 4
# Seconds at one density, from operation counts at 600 TFLOP/s dense and half of that sparse; the first density of a
# shape also compiles.
NEEDS, COMPILING = {"wan720": 25, "hunyuan720": 35, "wan480": 10, "cogvideox15": 10}, 60
FASTER = "tails block and off run with the tile that was fastest with row"


@dataclass
class Course:
    """One shape: its tensors, the rows that are known exactly, and the best dense attention."""

    name: str
    bench: Bench
    scene: Scene
    rows: Tensor
    want: Tensor
    dense: tuple[str, Callable]

    @classmethod
    def of(cls, name: str, bench: Bench) -> Course:
        shape = shape_of(name, bench)
        q, k, v = structured(shape.layout, shape.heads, shape.dim, bench.device, torch.bfloat16)
        rows = sampled_rows(shape.layout, ROWS, bench.device)
        scene = Scene(shape.layout, q, k, v, bench.device)
        return cls(name, bench, scene, rows, exact(q, k, v, rows), best_dense(q, k, v, bench))

    def key(self, density: float) -> dict:
        return {"shape": self.name, "setting": f"density {density:g}"}

    def gathered(self, density: float, makers: dict[str, Callable[[], dict[str, Contender]]]) -> dict[str, Contender]:
        """Contenders of several kinds; a kind that cannot be made leaves a row that says why."""
        found = {}
        for kind, make in makers.items():
            with self.bench.attempt(what=kind, **self.key(density)):
                found |= make()
        return found

    def compare(self, density: float, contenders: dict[str, Contender], *, rounds: int, last: str) -> dict[str, Ran]:
        """All of them and dense, side by side; a row each, the one of `last` at the end."""
        calls = {"best dense": self.dense[1], **{name: one.call for name, one in contenders.items()}}
        error = lambda out: relative(out[:, self.rows], self.want) if len(out[0]) == len(self.scene.q[0]) else None  # noqa: E731
        ran = race(calls, self.bench, self.key(density), error=error, rounds=rounds)
        if "best dense" not in ran:
            return ran
        dense = ran.pop("best dense")
        for name, one in ran.items():
            plan = contenders[name].plan
            kept = density if plan is None else float(kept_share(plan))
            self.bench.put(
                what=name, **self.key(density), **one.figures, kept=kept, x_dense=dense.median / one.median,
                efficiency=dense.median * kept / one.median,
            )  # fmt: skip
        self.bench.put(what=last, **self.key(density), **dense.figures, name=self.dense[0])
        return ran


def fastest(ran: dict[str, Ran], contenders: dict[str, Contender], name: str) -> Tile | None:
    """The tile with the least median among the contenders of that name."""
    of_name = {what: one.median for what, one in ran.items() if what.startswith(f"{name}, ")}
    return contenders[min(of_name, key=of_name.get)].tile if of_name else None


def at_density(course: Course, density: float, tiles: dict[str, Tile | None]) -> None:
    """One table of the results. tiles: the fastest of earlier densities, by plan, filled at the first"""
    scene, bench = course.scene, course.bench
    plans = {"blocks": plan_of(scene, density), "pairs": plan_of(scene, density, DOUBLE)}
    if not tiles:
        choices = course.gathered(density, {f"{name}, tiles": partial(tile_contenders, scene, plan, name)
                                            for name, plan in plans.items()})  # fmt: skip
        ran = course.compare(density, choices, rounds=TILE_ROUNDS, last="dense beside the tiles")
        tiles |= {name: fastest(ran, choices, name) for name in ("blocks", "blocks int8", "pairs", "pairs int8")}
    makers = {
        "draft": partial(whole_contenders, scene, density),
        **{name: partial(block_contenders, scene, plan, name, tiles[name], tiles[f"{name} int8"])
           for name, plan in plans.items()},
        "sol_attn": partial(sol_contenders, scene, density),
        "flex 64": partial(flex_contenders, scene, plans["blocks"], "flex 64"),
        "flex 128": partial(flex_contenders, scene, plans["pairs"], "flex 128"),
    }  # fmt: skip
    course.compare(density, course.gathered(density, makers), rounds=ROUNDS, last="best dense")
    if course.name == "wan720" and density == DENSITIES[0]:
        gather(course, density, plans["blocks"])
    if bench.device != "cpu":
        torch.cuda.empty_cache()


def gather(course: Course, density: float, plan: BlockPlan) -> None:
    """The backend of cards without Triton, once: it takes seconds."""
    call = partial(block_attend, *course.scene.qkv, plan, tail="row", backend="gather")
    key = course.key(density)
    error = lambda out: relative(out[:, course.rows], course.want)  # noqa: E731
    for name, one in race({"gather, tail row": call}, course.bench, key, error=error, rounds=1).items():
        course.bench.put(what=name, **key, **one.figures)


def tell_data(course: Course) -> None:
    """How concentrated the attention is that all of this is measured on."""
    key = {"what": "mass in the best blocks", "shape": course.name, "setting": "of 64"}
    with course.bench.attempt(**key):
        order = strips(course.scene.layout, course.scene.device)
        found = {share: held(course.scene.q, course.scene.k, order, share, 8) for share in (0.1, 0.2)}
        course.bench.put(**key, **{f"share_{share:g}": float(mass.mean()) for share, mass in found.items()},
                         least_head=float(found[0.2].min()), most_head=float(found[0.2].max()))  # fmt: skip


def shape_rows(name: str, bench: Bench) -> None:
    todo = [d for d in DENSITIES if not bench.has(what="best dense", shape=name, setting=f"density {d:g}")]
    course, tiles = None, {}
    for density in todo:
        key = {"what": "best dense", "shape": name, "setting": f"density {density:g}"}
        if not bench.smoke and bench.left() < NEEDS[name] + (COMPILING if course is None else 0):
            bench.put(**key, failed=NO_TIME)
            continue
        with bench.attempt(**key):
            course = course or Course.of(name, bench)
            at_density(course, density, tiles)
    if course is not None:
        tell_data(course)
    forget_compiled(bench.device)


@torch.no_grad()
def run(bench: Bench) -> None:
    remember_tiles(bench)
    for name in ORDER:
        shape_rows(name, bench)


STAGES = (
    Stage(
        "attention",
        "Structured random q, k and v (smooth latents, Wan's rotary positions in three axes, noise) in bfloat16, "
        f"batch 1. All rows of a shape and density are medians of {ROUNDS} interleaved rounds (tiles {TILE_ROUNDS}, "
        "gather 1) by device events, after four calls to warm up. best dense: the exact dense attention that is "
        "fastest on this card at this shape. x_dense: its time over the row's; efficiency: its time x kept share / "
        "the row's. kept: share of the score matrix that is computed exactly. blocks: query and key blocks of 64 "
        "tokens, near squares of a frame; pairs: query blocks of 128; both chosen before by pooled means and not "
        "timed; int8: products of queries and keys in int8. draft, all in: selection and kernel, tail row, in one "
        "timed call; draft double: with query blocks of 128; as its node: with all that Sparse Video Attention does "
        f"around a call. {FASTER}. sol_attn: comfy-kitchen's, top-k at the same share, tokens in raster order. flex: "
        "FlexAttention over the same blocks, compiled, without what is dropped; blocks that hold no padding are "
        f"handed over as full ones. MB above the inputs, the result included. error: relative L2 of {ROWS} rows of "
        "every head to fp32.",
        240,
        run,
    ),
)
