"""The weighted sum of step caches against a copy and against whole tensors in torch, at the sizes of real histories.

    python -m bench.cache.weighted_sum [--device cuda] [--sizes 8 335] [--dtypes bfloat16] [--json FILE]

In turn in one process, minimum of --rounds after a warm-up. copy: `clone`, as much memory as can be written at best;
whole: every product and sum over all numbers in float32, as torch does it without more ado; then each backend that
takes the call.
On the CPU the thread's own time counts, so that other programs do not. GB/s: K tensors read and one written.

On a GPU, --blocks tries other shares of a program than the one the kernel has.
"""
# K tensors

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from interspatial.kernels import triton_weighted_sum
from interspatial.kernels.weighted_sum import BACKENDS, SumCall, weighted_sum, weighted_sum_reference
from torch import Tensor

WEIGHTS = (2.5, -2.0, 0.5, -0.25, 0.125, 0.0625, -0.03, 0.01)  # as large as those of a line and a parabola


def milliseconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.thread_time()
        call()
        return 1e3 * (time.thread_time() - start)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def whole(tensors: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    total = tensors[0].float() * weights[0]
    for x, w in zip(tensors[1:], weights[1:], strict=True):
        total.add_(x.float(), alpha=w)
    return total.to(tensors[0].dtype)


def candidates(tensors: list[Tensor], blocks: list[int]) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name."""
    weights = WEIGHTS[: len(tensors)]
    found = {"copy": lambda: tensors[0].clone(), "whole": lambda: whole(tensors, weights)}
    why = BACKENDS.reasons(SumCall(tuple(tensors), weights))
    for name in (name for name, reason in why.items() if reason is None):
        for block in blocks if name == "triton" else blocks[:1]:
            label = f"triton {block}" if name == "triton" else name
            found[label] = lambda name=name, block=block: in_blocks(tensors, weights, name, block)
    return found


def in_blocks(tensors: list[Tensor], weights: tuple[float, ...], backend: str, block: int) -> Tensor:
    triton_weighted_sum.BLOCK = block
    return weighted_sum(tensors, weights, backend=backend)


def measure(megabytes: float, dtype: torch.dtype, count: int, args: argparse.Namespace) -> list[dict]:
    """Rows of one size, format and K."""
    numbers = int(megabytes * 1e6) // dtype.itemsize
    draw = torch.Generator(args.device).manual_seed(0)
    tensors = [torch.randn(numbers, generator=draw, device=args.device, dtype=dtype) for _ in range(count)]
    named = candidates(tensors, args.blocks)
    best = dict.fromkeys(named, float("inf"))
    for round_ in range(args.rounds + 1):  # the first one warms up
        for name, call in named.items():
            took = milliseconds(call, args.device)
            best[name] = min(best[name], took) if round_ else best[name]
    want = weighted_sum_reference(tensors, WEIGHTS[:count]).double()
    rows = []
    for name, ms in best.items():
        error = float((named[name]().double() - want).norm() / want.norm()) if name != "copy" else None
        moved = (2 if name == "copy" else count + 1) * numbers * dtype.itemsize
        rows.append({"MB": megabytes, "dtype": str(dtype)[6:], "K": count, "way": name, "ms": ms,
                     "GB/s": moved / ms / 1e6, "error": error})  # fmt: skip
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=float, nargs="+", default=(8, 32), help="MB of one tensor")
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
    parser.add_argument("--counts", type=int, nargs="+", default=(2, 3), metavar="K")
    parser.add_argument("--blocks", type=int, nargs="+", default=[triton_weighted_sum.BLOCK])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}\n| MB | format | K | way | ms | GB/s | relative L2 |\n|{' --- |' * 7}")
    rows = []
    for megabytes in args.sizes:
        for dtype in args.dtypes:
            for count in args.counts:
                rows += (found := measure(megabytes, getattr(torch, dtype), count, args))
                for row in found:
                    error = "" if row["error"] is None else f"{row['error']:.1e}"
                    print(f"| {row['MB']:g} | {row['dtype']} | {row['K']} | {row['way']} | {row['ms']:.2f} | "
                          f"{row['GB/s']:.1f} | {error} |", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
