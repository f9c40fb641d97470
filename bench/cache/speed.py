"""What a forecast step costs beside a full one, on a Wan of any size with random weights. CPU or GPU.

    python -m bench.cache.speed                                    a small model: a minute on a CPU core
    python -m bench.cache.speed --dim 5120 --ffn 13824 --blocks 40 --grid 21x30x52 --dtype bfloat16     Wan 14B, 480p

Every second step is forecast, in turn with dense runs of the same model in this process. Time is wall time inside the
evaluations of the model, from device synchronised to device synchronised; each step counts with its least time over the
rounds, the first of which warms up. With a full run in every N steps a run is N F / (F + (N - 1) f) times as fast, for
F and f of the table. What leaves out blocks, not steps, is measured by `bench.cache.delta_bound`.
"""
# F, f seconds of a full and of a forecast step    N steps from one full run to the next

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.ldm.wan.model
import comfy.ops
import comfy.sd
import torch
from interspatial.models import host
from interspatial.models.cache import CACHES, PACES, StepCache
from interspatial.models.report import Card

from ..inprocess import Settings, sample

STEPS, TEXT = 6, 4096   # steps: a multiple of every interval
VARIANTS = {
    "taylorseer, output": ("taylorseer", "output"),
    "taylorseer, last block": ("taylorseer", "last block"),
    "spectrum, output": ("spectrum", "output"),
}


@dataclass
class Clocked:
    """Seconds of every evaluation, by step. Outermost, so the cache is in it. now: the clock"""

    now: Callable[[], float]
    steps: list[list[float]] = field(default_factory=lambda: [[] for _ in range(STEPS)])

    def why_not(self, step) -> None:
        return None

    def evaluate(self, step) -> torch.Tensor:
        start = self.now()
        out = step.proceed()
        self.steps[step.run.step].append(self.now() - start)
        return out

    def least(self) -> list[float]:
        """Of every step; the first round warms up."""
        return [min(seconds[1:]) for seconds in self.steps]

    def mean(self, steps: range) -> float:
        """Milliseconds of these steps, each by its least time."""
        return 1e3 * sum(self.least()[i] for i in steps) / len(steps)


def wan(dim: int, ffn: int, blocks: int, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """A MODEL of ComfyUI's Wan with random weights."""
    with torch.device("meta"):
        module = comfy.ldm.wan.model.WanModel(
            dim=dim, ffn_dim=ffn, num_heads=dim // 128, num_layers=blocks, in_dim=16, text_dim=TEXT, dtype=dtype,
            operations=comfy.ops.disable_weight_init)  # fmt: skip
    draw = torch.Generator(device).manual_seed(0)
    weights = {name: torch.randn(x.shape, generator=draw, dtype=dtype, device=device) * 0.02
               for name, x in module.state_dict().items()}  # fmt: skip
    return comfy.sd.load_diffusion_model_state_dict(weights)


def wall_clock(device: str) -> Callable[[], float]:
    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def rounds(models: dict, count: int, grid: tuple[int, int, int]) -> None:
    """Run every model in turn, `count` times and once more to warm up. grid: tokens T H W"""
    t, h, w = grid
    prompt = [[torch.randn(1, 64, TEXT, generator=torch.Generator().manual_seed(1)), {}]]
    for _ in range(count + 1):
        for model in models.values():
            sample(model, prompt, prompt, torch.zeros(1, 16, t, 2 * h, 2 * w), Settings(steps=STEPS, cfg=1.0))


def clocked(models: dict, now: Callable[[], float]) -> tuple[dict, dict[str, Clocked]]:
    """The models with a clock around each evaluation, and the clocks."""
    clocks = {name: Clocked(now) for name in models}
    return {name: host.attach_step(model, Card("clock", "measure"), clocks[name])
            for name, model in models.items()}, clocks  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--grid", type=lambda text: tuple(map(int, text.split("x"))), default=(4, 16, 16))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    plain = wan(args.dim, args.ffn, args.blocks, getattr(torch, args.dtype), args.device)
    caches = {name: StepCache(CACHES[method](), PACES["fixed"](2), 2, 0, site)
              for name, (method, site) in VARIANTS.items()}  # fmt: skip
    patched = {name: host.attach_step(plain, Card("cache", "cache"), cache) for name, cache in caches.items()}
    models, clocks = clocked({"dense": plain, **patched}, wall_clock(args.device))
    rounds(models, args.rounds, args.grid)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    dense = clocks["dense"].mean(range(STEPS))
    tokens = math.prod(args.grid)
    print(f"{where}, torch {torch.__version__}, {args.dtype}, {tokens} tokens, {args.blocks} blocks of {args.dim}: "
          f"dense {dense:.1f} ms a step")
    print("| method | full step, ms | forecast step, ms | every second step | every fourth | report |")
    print("|" + " --- |" * 6)
    for name in patched:
        full, part = clocks[name].mean(range(3, STEPS, 2)), clocks[name].mean(range(2, STEPS, 2))
        report = host.report_of(models[name]).splitlines()[-1]
        print(f"| {name} | {full:.1f} | {part:.1f} | {2 * dense / (full + part):.2f} x | "
              f"{4 * dense / (full + 3 * part):.2f} x | {report} |")


if __name__ == "__main__":
    main()
