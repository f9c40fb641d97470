"""What planning costs: every method's choice of blocks, without the attention that follows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from interspatial.kernels.pool_blocks import pool_blocks
from interspatial.models.attention import METHODS
from interspatial.models.attention.kmeans import first_centroids, kmeans
from interspatial.models.attention.pooled import Pooled
from interspatial.models.attention.select import top_of_rows
from interspatial.models.attention.svg2 import FIRST_ROUNDS, KEY_SLOTS, LATER_ROUNDS

from bench.gpu.activations import structured
from bench.gpu.calls import Planned, Sampling, Steady, method_of
from bench.gpu.contenders import strips
from bench.gpu.shapes import shape_of
from bench.gpu.stage import Bench, Stage
from bench.gpu.timing import NO_TIME, race, timed

ORDER = ("wan720", "hunyuan720")
DENSITY = 0.2
NEEDS = 5  # seconds of a method


def waits(call: Callable[[], object], device: str) -> str:
    """ "yes" with what waited when a call makes the host wait for the device, else "no"; on a CPU nobody can tell."""
    if device == "cpu":
        return "not known"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return f"yes: {str(error).splitlines()[0][:100]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


def of_method(name: str, sampling: Sampling, bench: Bench, key: dict) -> None:
    """The first step once, as it comes once a run, when another run has loaded its kernels; later ones in turn."""
    method = method_of(name, DENSITY, sampling)
    fresh = lambda: Sampling(sampling.q, sampling.k, sampling.v, sampling.layout)  # noqa: E731
    before = Steady(fresh(), method, DENSITY)
    before.begin(Planned)
    runs = Steady(fresh(), method, DENSITY)
    first, first_mb = timed(partial(runs.begin, Planned), bench.device)
    runs.go_on()
    later = partial(runs.attend, Planned)
    ran = race({name: later}, bench, key)
    if name in ran:
        bench.put(what=name, **key, **ran[name].figures, first_ms=first, first_mb=first_mb,
                  waits=waits(later, bench.device))  # fmt: skip


def parts(sampling: Sampling, bench: Bench, key: dict) -> None:
    """What the parts of planning cost by themselves."""
    q, k, v = sampling.q, sampling.k, sampling.v
    order = strips(sampling.layout, bench.device)
    pooled = Pooled.of(q, k, order)
    centres = first_centroids(k, min(1000, k.shape[1] // 4), 0)
    calls = {
        "draft, pooling": lambda: Pooled.of(q, k, order),
        "draft, scores and lists": lambda: top_of_rows(pooled, order, DENSITY),
        "pooling of keys and values for the tail": lambda: [pool_blocks(x, order.slots) for x in (k, v)],
        f"k-means of keys, first step ({FIRST_ROUNDS} rounds)": lambda: kmeans(k, centres, FIRST_ROUNDS, KEY_SLOTS),
        f"k-means of keys, later steps ({LATER_ROUNDS})": lambda: kmeans(k, centres, LATER_ROUNDS, KEY_SLOTS),
    }
    for what, one in race(calls, bench, key, rounds=5).items():
        bench.put(what=what, **key, **one.figures)


def shape_rows(name: str, bench: Bench) -> None:
    shape, key = shape_of(name, bench), {"shape": name, "setting": f"density {DENSITY:g}"}
    names = ["draft", *(method for method in METHODS if method != "draft")]
    todo = [method for method in names if not bench.has(what=method, **key)]
    if not todo:
        return
    qkv = structured(shape.layout, shape.heads, shape.dim, bench.device, torch.bfloat16)
    sampling = Sampling(*qkv, shape.layout)
    for method in todo:
        if not bench.smoke and bench.left() < NEEDS:
            bench.put(what=method, **key, failed=NO_TIME)
            continue
        with bench.attempt(what=method, **key):
            of_method(method, sampling, bench, key)
        if method == "draft":
            with bench.attempt(what="parts", **key):
                parts(sampling, bench, key)


@torch.no_grad()
def run(bench: Bench) -> None:
    for name in ORDER:
        shape_rows(name, bench)


STAGES = (
    Stage(
        "selection",
        "Planning alone: each method as its node calls it, with a kernel that does nothing, on structured random q, k "
        f"and v in bfloat16 at density {DENSITY:g}. ms: a later step, median of 10 by device events; first_ms: the "
        "first step of a run, once, kernels loaded before (what a method searches in comes on top where it is a dense "
        "pass; Sparse-vDiT's table was calibrated before). waits: whether a later step makes the host wait for the "
        "device, by torch's sync debug mode. Parts are timed by themselves, median of 5.",
        60,
        run,
    ),
)
