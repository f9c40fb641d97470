"""Speed of Delta-DiT against its bound, on a Wan of middling size with random weights, on the CPU.

    python -m bench.cache.delta_bound [--dim 256] [--blocks 12] [--grid 4x16x16] [--rounds 3]

With one full run in N steps and C of D blocks in the span, block forwards alone allow 1 / (1 - (1 - 1/N) C / D). Time
is the process's CPU time inside the evaluations of the model (embedding, blocks, head, and all of the cache), so that
other work on the machine does not count as waiting. A round runs every setting once, dense first; each step counts with
its least time over the rounds.
"""
# D blocks   C blocks in the span   N steps from one full run to the next

from __future__ import annotations

import argparse
import math
import time

import torch
from interspatial.models import host
from interspatial.models.cache.delta_dit import DeltaDiT
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.report import Card

from .speed import STEPS, clocked, rounds, wan

VARIANTS = ((2, 0.6, "rear"), (2, 0.6, "front"), (3, 0.6, "rear"), (2, 0.75, "rear"))


def patched(model, interval: int, fraction: float, side: str):
    """With the cache; the span stays on one side, for the switch costs a full step that the bound does not know."""
    method = DeltaDiT(cached_fraction=fraction, switch=1.0 if side == "rear" else 0.0)
    cache = StepCache(method, Fixed(interval), 1, 0)
    return host.attach_step(model, Card("Delta-DiT", "cache", skips="blocks"), cache)


def bound(interval: int, fraction: float, blocks: int) -> float:
    return 1 / (1 - (1 - 1 / interval) * round(fraction * blocks) / blocks)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--grid", type=lambda text: tuple(map(int, text.split("x"))), default=(4, 16, 16))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain = wan(args.dim, 4 * args.dim, args.blocks)
    models, clocks = clocked({None: plain, **{v: patched(plain, *v) for v in VARIANTS}}, time.process_time)
    rounds(models, args.rounds, args.grid)
    dense = clocks[None].least()
    print(f"Dense: {sum(dense) / STEPS * 1e3:.0f} ms a step, {math.prod(args.grid)} tokens, {args.blocks} blocks of "
          f"{args.dim}")
    print("| N | C of D | side | full step, ms | cached step, ms | speed | bound | share of it |\n|" + " --- |" * 8)
    for variant in VARIANTS:
        interval, fraction, side = variant
        least, most = clocks[variant].least(), bound(interval, fraction, args.blocks)
        full, part = least[interval::interval], [x for i, x in enumerate(least) if i % interval]
        speed = sum(dense) / sum(least)
        print(f"| {interval} | {round(fraction * args.blocks)} of {args.blocks} | {side} | "
              f"{sum(full) / len(full) * 1e3:.0f} | {sum(part) / len(part) * 1e3:.0f} | {speed:.3f} | {most:.3f} | "
              f"{100 * speed / most:.1f} % |")


if __name__ == "__main__":
    main()
