"""Quantised linear layers on the CPU against torch's own, at the shapes of Wan 1.3B.

    OMP_NUM_THREADS=1 python -m bench.quant.speed_cpu [--tokens 1024] [--layers ffn.0] [--json FILE]

Side by side in one process, in turn, best of --rounds after a warm-up: F.linear in float32 and in bfloat16; then each
format and width with activations of 8 bits and of 16, in the dtype --dtype; and what decoding alone takes. Weights are
random; codes are random too, since what they stand for does not change the time. A first call that is told apart shows
what computes the layer.
"""
# M tokens   N outputs   K inputs

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from interspatial.kernels.block_hadamard import block_of
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.format import FORMATS, Coded
from interspatial.models.quant.linear import linear, told
from torch import Tensor
from torch.nn import functional as F

LAYERS = {"attn": (1536, 1536), "ffn.0": (8960, 1536), "ffn.2": (1536, 8960), "tiny": (64, 256)}  # N, K
SAMPLE = 16  # rows that are encoded; the rest repeats them
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # "cpu" leaves out waiting for others, with one thread


def random_coded(name: str, bits: int, shape: tuple[int, int], device: str = "cpu", masked: bool = False) -> Coded:
    """A weight of the format with rows of a few true ones. masked: with a mask of the channels"""
    draw = torch.Generator().manual_seed(0)
    sample = FORMATS[name].encode(torch.randn(SAMPLE, shape[1], generator=draw), bits)
    times = -(-shape[0] // SAMPLE)
    by_row = sample.table is not None and sample.table.ndim == 2 and len(sample.table) == SAMPLE
    by_row = by_row and FORMATS[name].table_by_row
    table = sample.table.repeat(times, 1)[: shape[0]] if by_row else sample.table
    codes, scale = (x.repeat(times, 1)[: shape[0]].contiguous().to(device) for x in (sample.codes, sample.scale))
    mask = torch.rand(shape[1], generator=draw).add(0.5).to(device) if masked else None
    table = None if table is None else table.contiguous().to(device)
    return Coded(name, bits, shape, codes, scale, table, Basis(block_of(shape[1]), mask))


def path_of(x: Tensor, coded: Coded, act_bits: int) -> str:
    """How the layer computes, by its own words."""
    heard: list[str] = []
    token = told.set(lambda name, bits, path: heard.append(path))
    try:
        linear(x, coded, None, act_bits)
    finally:
        told.reset(token)
    return heard[0]


def contenders(shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], str]]:
    """Name -> a call, and by what it is computed."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, shape[1], generator=draw)
    weight = torch.randn(shape, generator=draw)
    found: dict[str, tuple[Callable[[], object], str]] = {}
    for kind in (torch.float32, torch.bfloat16):
        given = x.to(kind), weight.to(kind)
        found[f"F.linear {str(kind)[6:]}"] = partial(F.linear, *given), "torch"
    x = x.to(dtype)
    for name, form in FORMATS.items():
        for bits in form.widths:
            coded = random_coded(name, bits, shape)
            found[f"{name} {bits} decoding"] = partial(form.integers, coded), "to int8"
            for act_bits in (8, 16):
                path = path_of(x, coded, act_bits)
                found[f"{name} {bits}, activations {act_bits}"] = partial(linear, x, coded, None, act_bits), path
    return found


def measure(layer: str, args: argparse.Namespace) -> list[dict]:
    """One shape."""
    calls = contenders(LAYERS[layer], args.tokens, getattr(torch, args.dtype))
    best = dict.fromkeys(calls, float("inf"))
    for round_ in range(args.rounds + 1):  # the first one warms up
        for name, (call, _) in calls.items():
            start = CLOCKS[args.clock]()
            call()
            if round_:
                best[name] = min(best[name], 1e3 * (CLOCKS[args.clock]() - start))
    plain, half = best["F.linear float32"], best["F.linear bfloat16"]
    return [
        {"layer": layer, "shape": LAYERS[layer], "tokens": args.tokens, "dtype": args.dtype, "what": name, "by": by,
         "ms": best[name], "times_float32": plain / best[name], "times_bfloat16": half / best[name]}
        for name, (_, by) in calls.items()
    ]  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=[name for name in LAYERS if name != "tiny"])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    head = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "clock": args.clock, "rounds": args.rounds, "method": __doc__}  # fmt: skip
    found: list[dict] = []
    print("| layer | what | by | ms | times float32 | times bfloat16 |\n|" + " --- |" * 6)
    for layer in args.layers:
        for row in measure(layer, args):
            ratios = f"{row['ms']:.2f} | {row['times_float32']:.2f} | {row['times_bfloat16']:.2f}"
            print(f"| {layer} | {row['what']} | {row['by']} | {ratios} |", flush=True)
            found.append(row)
        if args.json:
            args.json.write_text(json.dumps({**head, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
