"""Peak memory of one attention call by each method, above its inputs and output, on the CPU.

    python -m bench.attention.memory [--grid 8x32x32] [--heads 4] [--density 0.25] [--json FILE]

The most bytes alive at a time of those that torch's allocator hands out during the call, less the output. The first
call of a run builds tables and, in methods that search, does the search; the second is what all later calls take. What
stays until the run ends is what lies between calls: tables of the run, and what a method remembers of this layer.
Dense is scaled_dot_product_attention. On a GPU the workspace of the kernels differs (Triton gathers nothing); tables
do not.
"""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from interspatial.models.attention import METHODS, Blocks, Job
from interspatial.models.call import AttentionCall
from interspatial.models.forward import Branch, Forward
from interspatial.models.layout import arrange
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

STEPS = 20


def traced(compute: Callable[[], object]) -> tuple[int, int]:
    """Most bytes alive during `compute`, and bytes that are still alive when its result has been dropped."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        compute()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(alive.max()), int(alive[-1])


def calls(args: argparse.Namespace) -> Callable[[int], AttentionCall]:
    """step -> a call of one prompt on the same tensors."""
    layout = arrange([("video", args.grid)])
    draw = torch.Generator().manual_seed(0)
    shape = (1, layout.tokens, args.heads, args.dim)
    q, k, v = (torch.randn(shape, generator=draw).to(getattr(torch, args.dtype)) for _ in "qkv")
    run = Run(Schedule([1 - i / STEPS for i in range(STEPS + 1)], lambda p: 1.0 - p), Report())
    tally = run.report.tally("m", Card("sparse", "sparse"))

    def call(step: int) -> AttentionCall:
        run.begin_call(1 - step / STEPS)
        forward = Forward(None, layout, 1, (Branch("p", 0, slice(0, 1)),), run.position)
        return AttentionCall(q, k, v, None, None, layout, 0, forward, run, "m", tally, lambda *rest: None)

    return call


def measure(name: str, args: argparse.Namespace) -> dict:
    """MB of the first call, of a later one, and of what stays."""
    method = METHODS[name](density=args.density)
    call = calls(args)
    given = math.prod(call(0).q.shape) * getattr(torch, args.dtype).itemsize
    blocks = Blocks("tile", args.side)
    tail = None if args.tail == "off" else args.tail
    first, stays = traced(lambda: method.attend(Job(call(0), blocks, tail, args.density)))
    later, _ = traced(lambda: method.attend(Job(call(1), blocks, tail, args.density)))
    return {"method": name, "first": (first - given) / 1e6, "later": (later - given) / 1e6, "stays": stays / 1e6}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    grid = lambda text: tuple(int(n) for n in text.split("x"))  # noqa: E731
    parser.add_argument("--grid", type=grid, default=(8, 32, 32), metavar="TxHxW")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--tail", choices=("row", "block", "off"), default="row")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    call = calls(args)(0)
    dense, _ = traced(lambda: scaled_dot_product_attention(*(x.transpose(1, 2) for x in (call.q, call.k, call.v))))
    extra, output = (dense - call.q.nbytes) / 1e6, call.q.nbytes / 1e6
    rows = [{"method": "dense", "first": extra, "later": extra, "stays": 0}]
    print(f"{call.layout.tokens} tokens, {args.heads} heads of {args.dim}, {args.dtype}, output {output:.1f} MB")
    print("| method | first call, MB | later calls, MB | stays, MB |\n| --- | --- | --- | --- |")
    for name in [None, *(n for n in METHODS if n != "sparse_vdit")]:
        if name:
            rows.append(measure(name, args))
        row = rows[-1]
        print(f"| {row['method']} | {row['first']:.1f} | {row['later']:.1f} | {row['stays']:.1f} |", flush=True)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"method": __doc__, "settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
