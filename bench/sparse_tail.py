"""Sparse attention on the tiny text-to-video model against dense of the same seed: what the pooled tail is worth.

    python -m bench.sparse_tail [--prompts 8]

Density counts exact blocks only; every layer is sparse, and every step after --dense-steps. PSNR of the decoded clip,
mean over prompts.
"""

from __future__ import annotations

import argparse

import torch
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, SparseAttention, When
from interspatial.models.puppet import scene
from interspatial.models.report import Card

from .inprocess import Settings, conditioning, decode, empty_latent, psnr, sample, video_model


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--side", type=int, default=4)
    parser.add_argument("--order", choices=("tile", "cube", "raster"), default="tile")
    parser.add_argument("--dense-steps", type=int, default=0)
    parser.add_argument("--tails", nargs="+", default=("row", "block", "off"))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--densities", type=float, nargs="+", default=(1.0, 0.5, 0.3, 0.2))
    args = parser.parse_args()
    prompts = [p.caption() for p in scene.split_prompts()[1][: args.prompts]]
    dense = [
        sample(
            video_model("t2v"), conditioning(p), conditioning(""), empty_latent(), Settings(steps=args.steps, seed=i)
        )
        for i, p in enumerate(prompts)
    ]
    pictures = [decode(d) for d in dense]
    print("| density | tail | PSNR to dense, dB | relative L2 of the latent |\n| --- | --- | --- | --- |")
    for density in args.densities:
        for tail in args.tails:
            patched = SparseAttention(
                METHODS["draft"](density=density),
                When(first=args.dense_steps),
                Blocks(args.order, args.side),
                None if tail == "off" else tail,
            )
            model = host.attach_attention(video_model("t2v"), Card("sparse", "sparse"), patched)
            out = [
                sample(model, conditioning(p), conditioning(""), empty_latent(), Settings(steps=args.steps, seed=i))
                for i, p in enumerate(prompts)
            ]
            error = sum(float((o - d).norm() / d.norm()) for o, d in zip(out, dense, strict=True)) / len(out)
            quality = sum(psnr(decode(o), p) for o, p in zip(out, pictures, strict=True)) / len(out)
            print(f"| {density} | {tail} | {quality:.2f} | {error:.2e} |", flush=True)


if __name__ == "__main__":
    main()
