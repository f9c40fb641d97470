"""What this card can do at most: copy, products, and exact dense attention by everything on the machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu.activations import exact, sampled_rows, structured
from bench.gpu.dense import best_of, dense_calls, forget_compiled
from bench.gpu.shapes import shape_of
from bench.gpu.stage import Bench, Stage
from bench.gpu.timing import Ran, race, relative

COPIED, SIDE = 8 << 30, 8192  # bytes in, and as many out; of square matrices
ROUNDS = 6  # of dense attention: a round of all of them takes 2 s at 75,600 tokens
ROWS = 64
ORDER = ("wan720", "hunyuan720", "wan480", "cogvideox15")
NEEDS = {"wan720": 45, "hunyuan720": 60, "wan480": 25, "cogvideox15": 25}  # seconds, compilations included


def products(bench: Bench) -> dict[str, tuple[Callable[[], object], float]]:
    """Name -> a call, and the floating or integer operations of it."""
    side = 64 if bench.smoke else SIDE
    normal = [torch.randn(side, side, device=bench.device) for _ in "ab"]
    half = [x.bfloat16() for x in normal]
    whole = [torch.randint(-127, 128, (side, side), device=bench.device, dtype=torch.int8) for _ in "ab"]
    calls = {
        "matmul bf16": lambda: half[0] @ half[1],
        "matmul fp32": lambda: normal[0] @ normal[1],
        "matmul int8": lambda: torch._int_mm(whole[0], whole[1].T),
    }
    return {name: (call, 2.0 * side**3) for name, call in calls.items()}


def machine(bench: Bench) -> None:
    key = {"shape": "machine", "setting": "plain"}
    size = (1 << 20) if bench.smoke else COPIED
    found = {**products(bench), "copy": (_copy(size, bench.device), 2.0 * size)}
    for name, ran in race({name: call for name, (call, _) in found.items()}, bench, key).items():
        rate = found[name][1] / ran.median / 1e9
        unit = {"tb_per_s": rate} if name == "copy" else {"tflops": rate}
        bench.put(what=name, **key, **ran.figures, **unit)


def _copy(size: int, device: str) -> Callable[[], Tensor]:
    source = torch.empty(size // 2, dtype=torch.int16, device=device).random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def dense_attention(name: str, bench: Bench) -> None:
    shape, key = shape_of(name, bench), {"shape": name, "setting": "dense"}
    q, k, v = structured(shape.layout, shape.heads, shape.dim, bench.device, torch.bfloat16)
    rows = sampled_rows(shape.layout, ROWS, bench.device)
    want = exact(q, k, v, rows)
    ran = race(dense_calls(q, k, v, bench.device), bench, key, error=lambda out: relative(out[:, rows], want),
               rounds=ROUNDS)  # fmt: skip
    best = best_of(ran)
    for what, one in ran.items():
        _put(bench, what, shape.flops, key, one, what == best)
    if best:
        bench.put(what="best dense", **key, name=best, ms=ran[best].median, tflops=shape.flops / ran[best].median / 1e9)


def _put(bench: Bench, what: str, flops: float, key: dict, one: Ran, best: bool) -> None:
    bench.put(what=what, **key, **one.figures, tflops=flops / one.median / 1e9, best=best)


@torch.no_grad()
def run(bench: Bench) -> None:
    for name in ORDER[:1]:
        _shape(name, bench)
    if not bench.has(what="copy", shape="machine"):
        machine(bench)
    for name in ORDER[1:]:
        _shape(name, bench)


def _shape(name: str, bench: Bench) -> None:
    key = {"shape": name, "setting": "dense"}
    if bench.has(what="best dense", **key):
        return
    if bench.left() < NEEDS[name] and not bench.smoke:
        bench.put(what="best dense", **key, failed="no time was left for it")
        return
    with bench.attempt(what="best dense", **key):
        dense_attention(name, bench)
    forget_compiled(bench.device)


STAGES = (
    Stage(
        "ceilings",
        "Copy of 8 GiB (read and written bytes count), products of square matrices of 8192 on random data, and every "
        "dense attention on the machine on structured random q, k and v in bfloat16, batch 1: median of interleaved "
        f"rounds (10, attention {ROUNDS}) by device events after three calls to warm up. TFLOP/s count 4 N^2 H D. MB "
        f"are what a call allocates above its inputs, its result included; error is the relative L2 of {ROWS} rows of "
        "every head to fp32. The best is the exact one of the least median; comfy-kitchen's int8 attention is not "
        "exact and does not count. ComfyUI: its optimized_attention with q, k and v as Wan's blocks hand them over.",
        180,
        run,
    ),
)
