"""What an interspatial adapter costs beside its host: operations counted, and time measured.

    python -m bench.interspatial.adapter_cost                 Wan 14B at 480x832x81, counted; nothing runs
    python -m bench.interspatial.adapter_cost --measure       a small stack of blocks, timed; CPU or GPU
    python -m bench.interspatial.adapter_cost --measure --real       four blocks of Wan 14B at that shape, a GPU

Counted: torch's flop counter over ComfyUI's WanModel and the adapter on the meta device, twice an addition and a
multiplication; the host with one block and with two, from which the others follow. The adapter's count is held against
its formula, and must agree within a thousandth. With a negative prompt both sides double. Measured: time inside the
evaluations, both models in turn, each step by its least; wall time on a GPU, the process's own time on a CPU.
"""
# N tokens   F latent frames   S = N / F tokens of a frame   D host width   V adapter width   M points

from __future__ import annotations

import argparse
import math
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.ldm.wan.model
import comfy.ops
import torch
from interspatial.models import host
from interspatial.models.block_visits import blocks_of
from interspatial.models.control.body import BodyTrack
from interspatial.models.control.interspatial import InterspatialControl
from interspatial.models.control.tokens import PEOPLE
from interspatial.models.host.adapter_files import adapter_of, beside
from interspatial.models.nets.interspatial_adapter import AdapterConfig, InterspatialAdapter
from interspatial.models.nets.point_tokens import Points
from interspatial.models.report import Card
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from ..cache.speed import clocked, rounds, wall_clock, wan
from ..results_file import Results

OUT = Path(__file__).parent.parent / "results" / "interspatial_adapter_cost.json"
TEXT_TOKENS, TEXT_WIDTH, STRIDE = 512, 4096, 4


@dataclass(frozen=True)
class Shape:
    """grid: T H W tokens    people, points: of the body    every: blocks from one with an adapter to the next"""

    dim: int
    ffn: int
    blocks: int
    grid: tuple[int, int, int]
    width: int
    every: int = 4
    people: int = 2
    points: int = 512

    @property
    def config(self) -> AdapterConfig:
        layers = tuple(range(self.every - 1, self.blocks, self.every))
        return AdapterConfig("wan", self.dim, layers, self.width, self.width // 64)


REAL = Shape(5120, 13824, 40, (21, 30, 52), 512)
SHAPES = {"Wan 14B 480p, 2 x 256 points": replace(REAL, points=256), "Wan 14B 480p, 2 x 512 points": REAL,
          "Wan 14B 480p, 2 x 1024 points": replace(REAL, points=1024),
          "Wan 1.3B 480p, every second block, 2 x 512 points": Shape(1536, 8960, 30, (21, 30, 52), 512, 2)}  # fmt: skip
SMALL = Shape(512, 2048, 4, (4, 16, 16), 128, points=64)


def attend(func, q: Tensor, k: Tensor, v: Tensor, heads: int, **rest) -> Tensor:
    """ComfyUI's attention override: torch's own, which runs without memory on the meta device."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def host_flops(shape: Shape) -> int:
    """One forward of the host, one row of the batch."""
    t, h, w = shape.grid
    found = []
    for blocks in (1, 2):
        with torch.device("meta"):
            model = comfy.ldm.wan.model.WanModel(
                dim=shape.dim, ffn_dim=shape.ffn, num_heads=shape.dim // 128, num_layers=blocks, in_dim=16,
                text_dim=TEXT_WIDTH, operations=comfy.ops.disable_weight_init)  # fmt: skip
            x, clock = torch.empty(1, 16, t, 2 * h, 2 * w), torch.empty(1)
            text = torch.empty(1, TEXT_TOKENS, TEXT_WIDTH)
            options = {"optimized_attention_override": attend}
            found.append(counted(lambda: model(x, clock, text, transformer_options=options)))  # noqa: B023
    return found[0] + (shape.blocks - 1) * (found[1] - found[0])


def empty_points(shape: Shape) -> Points:
    frames, count = shape.grid[0], shape.people * shape.points
    return Points(torch.empty(1, frames, count, 3), torch.ones(1, frames, count, dtype=torch.bool),
                  torch.empty(1, frames, count, STRIDE, 3), torch.zeros(1, count, dtype=torch.int64),
                  torch.zeros(1, count, dtype=torch.int64))  # fmt: skip


def adapter_flops(shape: Shape) -> tuple[int, int, int]:
    """Operations of a forward, and once a run; bytes that are kept for a run in 16 bits."""
    _, h, w = shape.grid
    config = replace(shape.config, layers=shape.config.layers[:1])
    with torch.device("meta"):
        network, points = InterspatialAdapter(config), empty_points(shape)
        once = counted(lambda: network.fixed(points, h, w))
        fixed = network.fixed(points, h, w)
        x = torch.empty(1, math.prod(shape.grid), shape.dim)
        one = counted(lambda: network.visit(config.layers[0], x, fixed.y, torch.zeros(1), fixed,
                                            torch.arange(shape.grid[0])))  # fmt: skip
    if abs(one / formula(shape) - 1) > 1e-3:
        raise RuntimeError(f"Adapter cost: {one} operations counted, {formula(shape)} by formula, one is wrong.")
    kept = fixed.y.numel() * 2 + sum(x.numel() * 4 for x in (*fixed.places.pixels, *fixed.places.points))
    return one * len(shape.config.layers), once, kept


def formula(shape: Shape) -> int:
    """Operations of one layer, by hand."""
    N, F, D, V = math.prod(shape.grid), shape.grid[0], shape.dim, shape.width
    M = shape.people * shape.points
    modulation = 2 * 256 * 2 * V
    over_time = F * M * (2 * 4 * V * V + 4 * F * V)
    render = 2 * N * V * V + 2 * F * M * 2 * V * V + 4 * N * M * V + 2 * N * V * D
    rebuild = 2 * F * M * V * V + 2 * N * 2 * V * V + 4 * N * M * V + 2 * F * M * V * V
    return modulation + over_time + 2 * N * D * V + render + rebuild + F * M * 16 * V * V


def count(results: Results, name: str, shape: Shape) -> None:
    base, (each, once, kept) = host_flops(shape), adapter_flops(shape)
    with torch.device("meta"):
        weights = sum(x.numel() for x in InterspatialAdapter(shape.config).parameters())
    row = {
        "host, TFLOP": base / 1e12, "adapter, TFLOP": each / 1e12, "share": each / base,
        "once a run, TFLOP": once / 1e12, "layers": len(shape.config.layers), "weights, million": weights / 1e6,
        "weights in 16 bits, MB": weights / 5e5, "kept for a run, MB": kept / 1e6,
        "copies in a layer, MB": 4 * math.prod(shape.grid) * shape.dim / 1e6,
    }  # fmt: skip
    results.put(name, row)


def random_body(shape: Shape) -> BodyTrack:
    frames = (shape.grid[0] - 1) * STRIDE + 1
    draw = torch.Generator().manual_seed(0)
    people = min(shape.people, PEOPLE)
    points = torch.rand(people, frames, shape.points, 3, generator=draw) - 0.5
    return BodyTrack(points, torch.ones(points.shape[:3], dtype=torch.bool),
                     torch.zeros(shape.points, dtype=torch.int64), 16.0)  # fmt: skip


def measure(results: Results, name: str, shape: Shape, dtype: torch.dtype, count_: int) -> None:
    """A step with and without, in turn; each step by its least time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = wan(shape.dim, shape.ffn, shape.blocks, dtype, device)
    assert len(blocks_of(plain.model.diffusion_model, host.family_of_model(plain))) == shape.blocks
    draw = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(x.shape, generator=draw, dtype=torch.float32).mul(0.02).to(dtype)
               for key, x in InterspatialAdapter(shape.config, device="meta").state_dict().items()}  # fmt: skip
    adapter = adapter_of(shape.config, weights, dtype)
    control = InterspatialControl(adapter, random_body(shape), None)
    controlled = host.attach_step(beside(plain, adapter), Card("control", "control"), control)
    models, clocks = clocked({"plain": plain, "controlled": controlled},
                             wall_clock(device) if device == "cuda" else time.process_time)
    peaks = {}
    for key in models:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rounds({key: models[key]}, 0, shape.grid)
        peaks[key] = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0
    rounds(models, count_, shape.grid)
    without, with_ = (sum(clocks[key].least()) / len(clocks[key].steps) * 1e3 for key in models)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    row = {
        "machine": where, "dtype": str(dtype).removeprefix("torch."), "without, ms": without, "with, ms": with_,
        "share": with_ / without - 1, "counted share": adapter_flops(shape)[0] / host_flops(shape),
        "peak more, MB": peaks["controlled"] - peaks["plain"],
        "report": host.report_of(models["controlled"]).splitlines()[-1],
    }  # fmt: skip
    results.put(name, row)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--real", action="store_true", help="four blocks of Wan 14B at 480x832x81, in bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results = Results(OUT, (__doc__ or "").rpartition("\n\n")[2], text=TEXT_TOKENS)
    if not args.measure:
        for name, shape in SHAPES.items():
            count(results, name, shape)
    elif args.real:
        measure(results, "measured: 4 blocks of Wan 14B 480p", replace(REAL, blocks=4), torch.bfloat16, args.rounds)
    else:
        measure(results, "measured: 4 small blocks", SMALL, torch.float32, args.rounds)


if __name__ == "__main__":
    main()
