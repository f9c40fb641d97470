"""What each sparse method costs in quality on the tiny text-to-video model, beside the control.

    python -m bench.attention.quality --json bench/results/attention_quality.json [--methods draft svg2]
    python -m bench.attention.quality --json bench/results/attention_quality.json --table

Clips: PSNR and SSIM of the decoded clip against the dense one of the same seed, mean over prompts, when every layer and
step is sparse ("all"), and with the dense steps and layers of the preset ("preset"). Calls: mean relative L2 and
recall of one attention call on the activations of the dense run, over all layers and four of the steps. Control: dense
against dense with another of ComfyUI's own attention backends, in float32 and with the whole model in bfloat16, as on a
GPU. Density is the share of video-to-video blocks; a row says how much a method really kept.

Every finished row is written at once; a later run goes on where one ended.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import comfy.ldm.modules.attention as backends
import comfy.model_management
import comfy.sd
import folder_paths
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, Method, SparseAttention, When
from interspatial.models.measure.attention_error import AttentionMeter, Findings
from interspatial.models.measure.candidates import Candidate
from interspatial.models.measure.metrics import compare
from interspatial.models.puppet import scene
from interspatial.models.report import Card

from ..inprocess import SHIFT, Settings, conditioning, decode, empty_latent, sample, video_model
from ..results_file import Results

BLOCKS = Blocks("tile", 2)  # 80 blocks of 4 tokens; 8 x 8 would be a whole frame of this small model
TAILS = {"row": "row", "block": "block", "off": None}
WHEN = {"all": When(), "preset": When(first=None, dense_layers=None)}


@lru_cache
def pattern(density: float, tail: str | None):
    """Sparse-vDiT reads a table: calibrated on another prompt and seed than those measured."""
    from .calibrated import calibrate

    return calibrate(density, tail, BLOCKS)


def method_of(name: str, density: float, tail: str | None) -> Method:
    if name == "sparse_vdit":
        return METHODS[name](pattern=pattern(density, tail))
    return METHODS[name](density=density)


def clips(model, args: argparse.Namespace) -> list[torch.Tensor]:
    """One clip a prompt, [F, H, W, 3]."""
    prompts = [p.caption() for p in scene.split_prompts()[1][: args.prompts]]
    runs = (Settings(steps=args.steps, seed=i) for i in range(len(prompts)))
    return [
        decode(sample(model, conditioning(p), conditioning(""), empty_latent(), run))
        for p, run in zip(prompts, runs, strict=True)
    ]


def likeness(found: list[torch.Tensor], dense: list[torch.Tensor]) -> dict:
    """PSNR in dB and SSIM, mean over clips."""
    results = [compare(d, f) for d, f in zip(dense, found, strict=True)]
    return {name: sum(getattr(r, f"clip_{name}") for r in results) / len(results) for name in ("psnr", "ssim")}


def final_clip(name: str, density: float, tail: str, when: str, args: argparse.Namespace) -> dict:
    patched = SparseAttention(method_of(name, density, TAILS[tail]), WHEN[when], BLOCKS, TAILS[tail])
    model = host.attach_attention(video_model("t2v"), Card("sparse", "sparse"), patched)
    return {**likeness(clips(model, args), dense_clips(args)), "report": host.report_of(model).splitlines()[0]}


def calls(names: list[str], densities: list[float], tail: str, args: argparse.Namespace) -> dict[tuple, dict]:
    """(method, density) -> error, recall, density of single calls along the dense run of one prompt."""
    chosen = tuple(
        Candidate(n, d, SparseAttention(method_of(n, d, TAILS[tail]), When(), BLOCKS, TAILS[tail]))
        for n in names for d in densities
    )  # fmt: skip
    found = Findings()
    meter = AttentionMeter(chosen, found, steps=4, layers=0, rows=320)
    model = host.attach_attention(video_model("t2v"), Card("meter", "measure"), meter)
    clips(model, argparse.Namespace(**{**vars(args), "prompts": 1}))
    groups = defaultdict(list)
    for record in found.records:
        groups[record.name, record.asked].append(record)
    return {
        key: {name: sum(values) / len(values) for name in ("error", "recall", "density")
              if (values := [getattr(r, name) for r in rows if getattr(r, name) is not None])}
        for key, rows in groups.items() if key[1] is not None
    }  # fmt: skip


@lru_cache
def _dense(steps: int, prompts: int) -> list[torch.Tensor]:
    return clips(video_model("t2v"), argparse.Namespace(steps=steps, prompts=prompts))


def dense_clips(args: argparse.Namespace) -> list[torch.Tensor]:
    return _dense(args.steps, args.prompts)


def control(dtype: torch.dtype, args: argparse.Namespace) -> dict[str, dict]:
    """Backend -> likeness to scaled_dot_product_attention, whole model in `dtype`."""
    path = folder_paths.get_full_path("diffusion_models", "tiny_puppet_t2v.safetensors")
    cast = comfy.model_management.unet_manual_cast
    comfy.model_management.unet_manual_cast = lambda *args, **kwargs: None  # on a CPU ComfyUI would compute in float32
    try:
        model = ModelSamplingSD3().patch(comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype}), SHIFT)[0]
    finally:
        comfy.model_management.unet_manual_cast = cast
    made = {}
    for name in ("pytorch", "basic", "split", "sub_quad"):
        made[name] = clips(with_backend(model, getattr(backends, f"attention_{name}")), args)
    return {name: likeness(made[name], made["pytorch"]) for name in made if name != "pytorch"}


def with_backend(model, backend: Callable):
    model = model.clone()

    def override(func, *args, **kwargs):
        return backend(*args, **{**kwargs, "_inside_attn_wrapper": True})

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def run(args: argparse.Namespace) -> None:
    results = Results(args.json, __doc__, steps=args.steps, prompts=args.prompts)
    if "control" in args.parts:
        for dtype in (torch.float32, torch.bfloat16):
            for name, row in control(dtype, args).items():
                results.put(f"control {str(dtype)[6:]} {name}", row)
    for tail in args.tails if "calls" in args.parts else ():
        first = args.densities[0]
        missing = [n for n in args.methods if "error" not in results.rows.get(key(n, first, tail, "all"), {})]
        for (name, density), row in (calls(missing, args.densities, tail, args) if missing else {}).items():
            results.put(key(name, density, tail, "all"), row)
    for when in args.when if "clips" in args.parts else ():
        for tail in args.tails:
            for density in args.densities:
                for name in args.methods:
                    if "psnr" not in results.rows.get(key(name, density, tail, when), {}):
                        results.put(key(name, density, tail, when), final_clip(name, density, tail, when, args))


def key(name: str, density: float, tail: str, when: str) -> str:
    return f"{when} {name} {density:g} {tail}"


def table(path: Path) -> None:
    """The rows as markdown, one table for each of the two protocols."""
    rows = json.loads(path.read_text())["rows"]
    for when in WHEN:
        head = "| density | tail | method | kept | PSNR, dB | SSIM | relative L2 | recall |"
        print(f"\n## {when}\n\n{head}\n|{' --- |' * 8}")
        for name, row in rows.items():
            part, *rest = name.split()
            if part == when:
                method, density, tail = rest
                shown = (f"{row[x]:.{n}f}" if x in row else "" for x, n in
                         (("density", 3), ("psnr", 2), ("ssim", 4), ("error", 4), ("recall", 3)))  # fmt: skip
                print(f"| {density} | {tail} | {method} | {' | '.join(shown)} |")
    for name, row in rows.items():
        if name.startswith("control"):
            print(f"{name}: {row['psnr']:.2f} dB, SSIM {row['ssim']:.5f}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.1])
    parser.add_argument("--tails", nargs="+", choices=TAILS, default=["row", "off"])
    parser.add_argument("--when", nargs="+", choices=WHEN, default=["all"])
    parts = ["control", "calls", "clips"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="print what is there and end")
    args = parser.parse_args()
    table(args.json) if args.table else run(args)


if __name__ == "__main__":
    main()
