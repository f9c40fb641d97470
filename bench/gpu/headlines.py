"""Each published method at its own density and model shape: our attention against the best dense, beside its figure."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from interspatial.kernels.block_plan import kept_share

from bench.gpu.activations import structured
from bench.gpu.calls import Sampling, Steady, remember_tiles, steady
from bench.gpu.dense import best_dense, forget_compiled
from bench.gpu.published import PUBLISHED, Published
from bench.gpu.shapes import shape_of
from bench.gpu.stage import Bench, Stage
from bench.gpu.timing import NO_TIME, Ran, race

ROUNDS = 5
NEEDS = 25  # seconds of a shape, compilations included
SMALL = ("wan480", "cogvideox2b")  # where attention takes half of a step, else seven tenths: Wan and HunyuanVideo, H100


def share_of_attention(shape: str, bench: Bench) -> tuple[float, str]:
    """Of a dense step's time: as the step stages of this run have measured it, else as users report it."""
    shape = shape.replace("768", "720")  # of the same model, which the steps are measured at
    for path in sorted(bench.path.parent.glob("*.rows.json")):
        for row in json.loads(path.read_text()):
            if row.get("what") == "share" and row.get("shape") == shape and "share" in row:
                return row["share"], "measured"
    return (0.5 if shape in SMALL else 0.7), "reported"


def whole_run(one: Published, speed: float, share: float) -> float:
    """How many times faster a run is when attention that is not dense is `speed` times faster."""
    attention = one.dense_calls + (1 - one.dense_calls) / speed
    return 1 / (1 - share + share * attention)


def put(one: Published, ran: Ran, dense: Ran, method: Steady, bench: Bench) -> None:
    kept, speed = float(kept_share(method.plan)), dense.median / ran.median
    share, source = share_of_attention(one.shape, bench)
    row = {"x_dense": speed, "kept": kept, "efficiency": dense.median * kept / ran.median}
    if one.attention:
        row["published_x_dense"] = one.attention
    if one.whole:
        row |= {"whole_run": whole_run(one, speed, share), "published_whole_run": one.whole,
                "dense_calls": one.dense_calls, "attention_share": share, "share_is": source}  # fmt: skip
    bench.put(what=one.name, shape=one.shape, setting=_setting(one), **ran.figures, **row)


def _setting(one: Published) -> str:
    rule = f"density {one.density:g}" if one.density else ", ".join(f"{k} {v}" for k, v in one.settings.items())
    return f"{one.method}, {rule}, tail {one.tail or 'off'}"


def at_shape(name: str, wanted: list[Published], bench: Bench) -> None:
    """All figures of one shape and dense, side by side."""
    shape = shape_of(name, bench)
    q, k, v = structured(shape.layout, shape.heads, shape.dim, bench.device, torch.bfloat16)
    dense_name, dense = best_dense(q, k, v, bench, flex=False)
    made: dict[str, Steady] = {}
    for one in wanted:
        with bench.attempt(what=one.name, shape=name, setting=_setting(one)):
            made[one.name] = steady(one.method, one.density, Sampling(q, k, v, shape.layout), one.tail, **one.settings)
    calls: dict[str, Callable] = {"best dense": dense} | {what: method.attend for what, method in made.items()}
    ran = race(calls, bench, {"shape": name, "setting": "published"}, rounds=ROUNDS)
    if "best dense" not in ran:
        return
    for one in wanted:
        if one.name in ran:
            with bench.attempt(what=one.name, shape=name, setting=_setting(one)):
                put(one, ran[one.name], ran["best dense"], made[one.name], bench)
    bench.put(what="best dense", shape=name, setting="published", **ran["best dense"].figures, name=dense_name)


@torch.no_grad()
def run(bench: Bench) -> None:
    remember_tiles(bench)
    for name in dict.fromkeys(one.shape for one in PUBLISHED):
        todo = [one for one in PUBLISHED if one.shape == name
                and not bench.has(what=one.name, shape=name, setting=_setting(one))]  # fmt: skip
        key = {"what": "best dense", "shape": name, "setting": "published"}
        if todo and not bench.smoke and bench.left() < NEEDS:
            bench.put(**key, failed=NO_TIME)
        elif todo:
            with bench.attempt(**key):
                at_shape(name, todo, bench)
            forget_compiled(bench.device)


STAGES = (
    Stage(
        "headlines",
        "Each published method at its own density and shape, on structured random q, k and v in bfloat16, batch 1: a "
        "later step of our implementation, planning included, and the best dense attention of torch's on this "
        f"card, median of {ROUNDS} interleaved rounds. x_dense: how many times faster than dense; published_x_dense "
        "where its paper gives one, against the dense attention and on the card of that paper. whole_run: "
        "1 / (1 - a + a (w + (1 - w) / x_dense)) with a the share of attention in a dense step and w the share of its "
        "calls that the paper leaves dense; published_whole_run beside it. An arithmetic, not a run.",
        150,
        run,
    ),
)
