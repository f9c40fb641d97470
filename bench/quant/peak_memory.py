"""Memory that quantising a large file takes, and its time, on the CPU.

    python -m bench.quant.peak_memory [--gigabytes 2] [--choices "vidit_q 8" ...] [--json FILE] [--folder DIR]

A file of Wan 14B shapes with random bf16 weights is written, quantised in a process of its own for each choice, and
deleted. A thread reads VmRSS and RssAnon of that process every 5 ms; figures are the highest reading above the one
after the import of torch, ComfyUI and the pack. RssAnon is what the process has allocated; VmRSS has mapped pages too.
Seconds are of the CPU, since other work may share the machine.
"""
# N outputs   K inputs

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from interspatial.models.host.quant_sources import FileSource
from interspatial.models.quant.quantise import layers_of, quantise
from interspatial.models.quant.recipe import Choice, Recipe
from interspatial.models.quant.safetensors_stream import Reader, Writer, header_room

from ..results_file import Results

CHOICES = ("vidit_q 8", "vidit_q 4", "rtn 4", "lrq 4", "lrq 3", "vq4 3", "vq4 2")
WIDTH, WIDE = 5120, 13824
# The largest layer first: a small file has it too, and it decides the peak.
BLOCK = {"ffn.0": (WIDE, WIDTH), "ffn.2": (WIDTH, WIDE)} | {
    f"{attention}_attn.{name}": (WIDTH, WIDTH) for attention in ("self", "cross") for name in "qkvo"
}  # fmt: skip
PERIOD = 0.005  # s between readings


class Watch:
    """Highest readings of this process's memory above the first ones, bytes."""

    def __init__(self) -> None:
        self.base = self.peak = readings()
        self._on = True
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._on = False
        self._thread.join()

    def above(self) -> dict[str, int]:
        return {name: self.peak[name] - self.base[name] for name in self.base}

    def _read(self) -> None:
        while self._on:
            now = readings()
            self.peak = {name: max(self.peak[name], now[name]) for name in now}
            time.sleep(PERIOD)


def readings() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(found[name].split()[0]) for name in ("VmRSS", "RssAnon")}


def write_source(path: Path, gigabytes: float) -> None:
    """Layers of Wan 14B, block by block, until the file has this size."""
    count, size, names = 0, 0, []
    while size < gigabytes * 1e9:
        part, shape = list(BLOCK.items())[count % len(BLOCK)]
        names.append((f"blocks.{count // len(BLOCK)}.{part}.weight", shape))
        count, size = count + 1, size + 2 * shape[0] * shape[1]
    writer = Writer(path, "", header_room([name for name, _ in names], {}))
    draw = torch.Generator().manual_seed(0)
    for name, shape in names:
        writer.add(name, [(name, torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=draw))], None)
    writer.finish({})


def measured(source: Path, choice: str) -> dict:
    """Quantise a file in this process, which has done nothing else."""
    out = source.with_name(f"{choice.replace(' ', '')}.safetensors")
    weights = FileSource(source)
    layers = layers_of(weights)
    began = time.process_time()
    with torch.inference_mode(), Watch() as watch:
        done = quantise(weights, Recipe.same(layers, Choice.parse(choice)), out)
    seconds = time.process_time() - began
    size = sum(entry.nbytes for entry in Reader(source).entries.values())
    out.unlink()
    return {
        "file GB": size / 1e9, "layers": len(layers), "VmRSS MB": watch.above()["VmRSS"] / 1e6,
        "RssAnon MB": watch.above()["RssAnon"] / 1e6, "base MB": watch.base["VmRSS"] / 1e6,
        "CPU s per GB": seconds / (size / 1e9), "share of bf16": done.after / done.before,
        "bits per weight": done.bits_per_weight, "error": max(x.error for x in done.layers.values()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--choices", nargs="+", default=CHOICES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "CHOICE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(Path(args.measure[0]), args.measure[1])))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder) / "source.safetensors"
        write_source(source, args.gigabytes)
        results = Results(args.json or Path(folder) / "rows.json", __doc__.splitlines()[0], threads=1)
        for choice in args.choices:
            command = [sys.executable, "-m", "bench.quant.peak_memory", "--measure", str(source), choice]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            results.put(f"{choice} of {args.gigabytes:g} GB", json.loads(told))


if __name__ == "__main__":
    main()
