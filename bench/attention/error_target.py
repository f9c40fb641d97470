"""Error targets on the tiny text-to-video model: the error that was aimed at, and the error that came.

    python -m bench.attention.error_target [--methods draft svg2] [--targets 0.05 0.1 0.2] [--json FILE]

Every layer and step is sparse. The error of each attention call is computed over all of its rows, against attention in
float32 on the same queries, keys and values; its mean over heads, layers and steps is the error that came.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, ErrorTarget, SparseAttention, When
from interspatial.models.puppet import scene
from interspatial.models.report import Card
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..inprocess import Settings, conditioning, decode, empty_latent, psnr, sample, video_model


class Watch:
    """Errors of all calls below it."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def why_not(self, call) -> None:
        return None

    def attend(self, call) -> Tensor:
        out = call.dense()
        exact = scaled_dot_product_attention(*(x.transpose(1, 2).float() for x in (call.q, call.k, call.v)))
        apart = (out.float() - exact.transpose(1, 2)).square().sum((1, 3)) / exact.square().sum((2, 3))
        self.errors.append(float(apart.sqrt().mean()))
        return out


def measure(name: str, tail: str | None, target: float, args: argparse.Namespace, dense: Tensor) -> dict:
    watch, sparse = Watch(), SparseAttention(METHODS[name](), When(), Blocks("tile", 2), tail,
                                             target=ErrorTarget(target, args.max_density))  # fmt: skip
    model = host.attach_attention(video_model("t2v"), Card("sparse", "sparse"), sparse)
    model = host.attach_attention(model, Card("watch", "measure"), watch)
    clip = decode(render(model, args))
    line = next(line for line in host.report_of(model).splitlines() if line.startswith("sparse"))
    came = sum(watch.errors) / len(watch.errors)
    row = {"method": name, "tail": tail or "off", "target": target, "came": came}
    return {**row, "psnr": psnr(clip, dense), "line": line}


def render(model, args: argparse.Namespace) -> Tensor:
    prompt = scene.split_prompts()[1][0].caption()
    return sample(model, conditioning(prompt), conditioning(""), empty_latent(), Settings(steps=args.steps, seed=1))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["draft", "svg2"])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--tails", nargs="+", choices=("row", "block", "off"), default=["row", "off"])
    parser.add_argument("--max-density", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dense = decode(render(video_model("t2v"), args))
    rows = []
    print("| method | tail | target | came | PSNR, dB | report |\n| --- | --- | --- | --- | --- | --- |")
    for name in args.methods:
        for tail in args.tails:
            for target in args.targets:
                rows.append(row := measure(name, None if tail == "off" else tail, target, args, dense))
                shown = f"{row['came']:.4f} | {row['psnr']:.2f} | {row['line']}"
                print(f"| {name} | {tail} | {target} | {shown} |", flush=True)
                if args.json:
                    args.json.write_text(json.dumps({"method": __doc__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
