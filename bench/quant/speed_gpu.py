"""Quantised weights on a GPU at the sizes of Wan 14B: linear layers, and one block of the model, with random weights.

    python -m bench.quant.speed_gpu [--tokens 32760 75600] [--formats vidit_q lrq vq4] [--json FILE]

Layers: side by side in one process, in turn, median of --rounds after a warm-up: F.linear in bfloat16; each format and
width with activations of 8 bits and of 16; the int8 layer by each backend that takes the call, and decoding alone.
Block: self attention, cross attention with 512 text tokens, feed-forward, norms and modulation of one Wan 14B block,
with all ten linear layers in one format; attention by scaled_dot_product_attention in all of them. MB are what a call
allocates above what was there; weights are told apart. Nothing is downloaded.

Without a GPU: --device cpu --tokens 64 --small shows that the script runs; its times mean nothing.
"""
# M tokens   N outputs   K inputs   H heads   D head dim

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from interspatial.kernels import decode_codes, int8_linear, round_rows
from interspatial.kernels.int8_linear import LinearCall
from interspatial.models.quant.format import FORMATS, Coded
from interspatial.models.quant.linear import linear
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.timing import timed
from bench.quant.speed_cpu import path_of, random_coded

WIDTH, FEED, TEXT, DIM = 5120, 13824, 512, 128  # of Wan 14B: channels, feed-forward, text tokens, head dim
SMALL = {"width": 256, "feed": 512, "text": 16, "dim": 64}
Linear = Callable[[Tensor], Tensor]
Made = tuple[Linear, int]  # a layer and the bytes of its weight


def plain(shape: tuple[int, int], device: str) -> Made:
    """The layer in bfloat16."""
    weight = torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[1] ** -0.5
    return (lambda x: F.linear(x, weight)), weight.nbytes


def coded_layer(name: str, bits: int, act_bits: int, shape: tuple[int, int], device: str) -> Made:
    """The layer in a format, with a mask of the channels as a calibrated one has."""
    coded = random_coded(name, bits, shape, device, masked=name == "vidit_q")
    return (lambda x: linear(x, coded, None, act_bits)), coded.nbytes


class Block:
    """One transformer block of Wan, its linear layers made by `make`."""

    def __init__(self, make: Callable[[tuple[int, int], str], Made], sizes: dict, device: str) -> None:
        width, feed = sizes["width"], sizes["feed"]
        self.sizes, self.nbytes, self.layers = sizes, 0, {}
        names = [f"{kind}.{x}" for kind in ("self", "cross") for x in "qkvo"]
        for name, shape in [*((x, (width, width)) for x in names), ("up", (feed, width)), ("down", (width, feed))]:
            self.layers[name], nbytes = make(shape, device)
            self.nbytes += nbytes
        self.text = torch.randn(1, sizes["text"], width, device=device, dtype=torch.bfloat16)
        self.modulation = torch.randn(6, width, device=device, dtype=torch.bfloat16) * 0.1

    def __call__(self, x: Tensor) -> Tensor:
        shift, scale, gate, shift_up, scale_up, gate_up = self.modulation
        x = x + gate * self._attend("self", self._norm(x) * (1 + scale) + shift, None)
        x = x + self._attend("cross", self._norm(x), self.text)
        y = F.gelu(self.layers["up"](self._norm(x) * (1 + scale_up) + shift_up), approximate="tanh")
        return x + gate_up * self.layers["down"](y)

    def _attend(self, kind: str, x: Tensor, other: Tensor | None) -> Tensor:
        other = x if other is None else other
        given = zip("qkv", (x, other, other), strict=True)
        q, k, v = (self.layers[f"{kind}.{name}"](y).unflatten(-1, (-1, self.sizes["dim"])) for name, y in given)
        out = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        return self.layers[f"{kind}.o"](out.transpose(1, 2).flatten(2))

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])


def choices(names: list[str]) -> list[tuple[str, int, int]]:
    """Format, bits, bits of activations."""
    return [(name, bits, act) for name in names for bits in FORMATS[name].widths for act in (8, 16)]


def kernels(coded: Coded, x: Tensor) -> dict[str, Callable[[], object]]:
    """The parts of an int8 layer by each backend that takes them, and decoding by each."""
    form, found = FORMATS[coded.format], {}
    weight, scale = form.integers(coded)
    given = (weight, scale, None, coded.basis.block, coded.basis.mask)
    for name, reason in int8_linear.BACKENDS.reasons(LinearCall(x, *given)).items():
        if reason is None:
            found[f"int8 layer by {name}"] = partial(int8_linear.int8_linear, x, *given, backend=name)
    rows = (x, coded.basis.mask, coded.basis.block)
    for name, reason in round_rows.BACKENDS.reasons(round_rows.RoundCall(*rows)).items():
        if reason is None:
            found[f"rounding by {name}"] = partial(round_rows.round_rows, *rows, backend=name)
    if coded.bits < 8 and coded.format in ("vidit_q", "rtn"):
        codes = (coded.codes, coded.bits, coded.shape[1], coded.table)
        for backend in decode_codes.BACKENDS.backends:
            if backend.why_not(decode_codes.DecodeCall("uniform", *codes)) is None:
                call = partial(decode_codes.decode_uniform, *codes, backend=backend.name)
                found[f"decoding {coded.bits} bits by {backend.name}"] = call
    return found


def raced(calls: dict[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, dict]:
    """Milliseconds and MB of each, or why it failed."""
    results: dict[str, dict] = {}
    for name, call in calls.items():
        try:
            call()
            results[name] = {"ms": [], "mb": 0.0}
        except Exception as error:  # what this card or torch lacks is a row of the table
            results[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    for _ in range(args.rounds):
        for name, result in results.items():
            if "failed" not in result:
                spent, memory = timed(calls[name], args.device)
                result["ms"].append(spent)
                result["mb"] = max(result["mb"], memory)
    return {name: {**r, "ms": median(r["ms"])} if "ms" in r else r for name, r in results.items()}


def layers(shape: tuple[int, int], tokens: int, args: argparse.Namespace) -> list[dict]:
    """All formats at one layer."""
    x = torch.randn(tokens, shape[1], device=args.device, dtype=torch.bfloat16)
    first, nbytes = plain(shape, args.device)
    calls, beside = {"bfloat16": partial(first, x)}, {"bfloat16": {"weight_mb": nbytes / 2**20, "by": "torch"}}
    for name, bits, act in choices(args.formats):
        coded = random_coded(name, bits, shape, args.device, masked=name == "vidit_q")
        label = f"{name} {bits}, activations {act}"
        calls[label] = partial(linear, x, coded, None, act)
        beside[label] = {"weight_mb": coded.nbytes / 2**20, "by": path_of(x, coded, act)}
    for bits in (8, 4):
        calls |= kernels(random_coded("vidit_q", bits, shape, args.device, masked=True), x)
    common = {"kind": "layer", "shape": shape, "tokens": tokens}
    return [{**common, "what": name, **beside.get(name, {}), **row} for name, row in raced(calls, args).items()]


def blocks(tokens: int, args: argparse.Namespace) -> list[dict]:
    """All formats in a whole block, one block in memory at a time."""
    found = []
    x = torch.randn(1, tokens, args.sizes["width"], device=args.device, dtype=torch.bfloat16)
    for choice in (None, *choices(args.formats)):
        make = plain if choice is None else partial(coded_layer, *choice)
        block = Block(make, args.sizes, args.device)
        label = "bfloat16" if choice is None else f"{choice[0]} {choice[1]}, activations {choice[2]}"
        (row,) = raced({label: partial(block, x)}, args).values()
        found.append({"kind": "block", "shape": (), "tokens": tokens, "what": label,
                      "weight_mb": block.nbytes / 2**20, **row})  # fmt: skip
        del block
    return found


def written(rows: list[dict]) -> None:
    """Rows of the table, times over the first one."""
    for row in rows:
        place = "block" if row["kind"] == "block" else "x".join(map(str, row["shape"]))
        cells = f"{row['failed']} | | |" if "failed" in row else (
            f"{row['ms']:.2f} | {rows[0].get('ms', float('nan')) / row['ms']:.2f} | {row['mb']:.0f} |")  # fmt: skip
        print(f"| {row['tokens']} | {place} | {row['what']} | {cells} {row.get('weight_mb', 0):.1f} |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=(32760, 75600))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[name for name in FORMATS if name != "rtn"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model, to see that the script runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.sizes = SMALL if args.small else {"width": WIDTH, "feed": FEED, "text": TEXT, "dim": DIM}
    width, feed = args.sizes["width"], args.sizes["feed"]
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    head = {"device": device, "torch": torch.__version__, "method": __doc__, "rounds": args.rounds}
    found: list[dict] = []
    print("| tokens | layer | what | ms | times bfloat16 | MB | MB of the weights |\n|" + " --- |" * 7)
    for tokens in args.tokens:
        runs = [partial(layers, shape, tokens, args) for shape in ((width, width), (feed, width), (width, feed))]
        for run in (*runs, partial(blocks, tokens, args)):
            rows = run()
            written(rows)
            found += rows
            if args.json:
                args.json.write_text(json.dumps({**head, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
