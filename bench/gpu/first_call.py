"""Seconds of the first sparse attention call of a process, of later ones, and of a warm-up before it. Prints JSON.

    python -m bench.gpu.first_call --shape wan480 [--warm-up] [--tiles FILE] [--device cpu --smoke]

A process of its own, because what is measured is what a fresh one has to do: Triton's cache on disk is where
TRITON_CACHE_DIR says, the tiles of earlier sessions in FILE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from interspatial.kernels.tuned_tiles import KNOWN
from interspatial.models import warm_up
from interspatial.models.attention import SparseAttention
from interspatial.models.attention.draft import Draft

from bench.gpu.calls import Sampling
from bench.gpu.shapes import SHAPES

DENSITY, LATER = 0.2, 9


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall time from an idle device to an idle device."""
    wait = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--warm-up", action="store_true")
    parser.add_argument("--tiles", type=Path)
    args = parser.parse_args()
    KNOWN.remember_in(args.tiles)
    shape = SHAPES[args.shape].small() if args.smoke else SHAPES[args.shape]
    size = 1, shape.tokens, shape.heads, shape.dim
    qkv = [torch.randn(size, device=args.device, dtype=torch.bfloat16) for _ in "qkv"]
    qkv[0][0, :64, 0] @ qkv[1][0, :64, 0].T  # a model has multiplied before it comes to its attention
    sparse, found = SparseAttention(Draft(density=DENSITY)), {}
    if args.warm_up:
        seen = warm_up.Seen(shape.layout, True, shape.heads, shape.dim, torch.bfloat16)
        tasks = warm_up.attention("sparse", sparse, seen, torch.device(args.device))
        found["warm_up"] = seconds(lambda: [task.run() for task in tasks], args.device)
    calls = [Sampling(*qkv, shape.layout).call(0) for _ in range(1 + LATER)]
    firsts = [seconds(partial(sparse.attend, call), args.device) for call in calls]
    found["first"], found["first_of_runs"] = firsts[0], median(firsts[1:])
    found["later"] = median(seconds(partial(sparse.attend, calls[0]), args.device) for _ in range(LATER))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
