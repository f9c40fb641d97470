"""What each weight format costs: bytes of the file, seconds to load, peak memory, seconds per step.

    python -m bench.quant.cost --model tiny --json bench/results/quant_cost.json [--only "vidit_q 4"]
    python -m bench.quant.cost --model mid --json bench/results/quant_cost.json
    python -m bench.quant.cost --model wan14 --gpu --json bench/results/quant_cost_gpu.json
    python -m bench.quant.cost --json bench/results/quant_cost.json --table

tiny is the text-to-video checkpoint; mid a random Wan of 300 million weights (width 1536 as in 1.3B, 6 blocks); wan14 a
random one of the shape of Wan 14B. Random models have the same 64 rows of codes in each layer of a width over and over:
speed and memory do not depend on the values, and no time goes into encoding. Load time and peak memory: a fresh process
each, the most that is resident above what imports leave, through loading and one step; weights that are read from the
mapped file count. Seconds: steps of euler at cfg 1 by ComfyUI's KSampler, every format in turn with the model itself,
best of --rounds, with the ratio. On a GPU memory is what torch holds there at most, beside what Will It Fit tells.
"""
# N outputs   K inputs

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.ldm.wan.model import WanModel
from interspatial.models.host.fit_facts import Question, fit_of
from interspatial.models.host.quant_loading import load_quantised_model
from interspatial.models.measure.memory import PeakMemory, resident_bytes, synchronize
from interspatial.models.quant.format import ACT_BITS, FORMATS, Coded
from interspatial.models.quant.layers import quantised_layers
from interspatial.models.quant.recipe import Choice
from interspatial.models.quant.weights_file import layer_tensors

from ..inprocess import Settings, sample
from ..results_file import Results

SIZES = {  # width, width of the MLP, blocks; latent T H W; tokens and channels of the text
    "tiny": (None, (5, 16, 16), (40, None)),
    "smoke": ((256, 1024, 2), (2, 16, 16), (16, 4096)),
    "mid": ((1536, 8960, 6), (2, 32, 32), (512, 4096)),  # 512 tokens: a core takes seconds, not minutes
    "wan14": ((5120, 13824, 40), (21, 60, 104), (512, 4096)),
}
ROWS = 64  # of a layer that are encoded
PLAIN = "as it is"


def source(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and metadata of the model itself; random ones in bfloat16."""
    sizes = SIZES[name][0]
    if sizes is None:
        path = folder_paths.get_full_path("diffusion_models", "tiny_puppet_t2v.safetensors")
        return comfy.utils.load_torch_file(path, return_metadata=True)
    width, inner, blocks = sizes
    model = WanModel(dim=width, ffn_dim=inner, num_heads=width // 128, num_layers=blocks, in_dim=16, out_dim=16,
                     text_dim=4096, dtype=torch.bfloat16, device="meta",
                     operations=comfy.ops.disable_weight_init)  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    return {key: torch.empty(x.shape, dtype=x.dtype).normal_(0, 0.02, generator=draw)
            for key, x in model.state_dict().items()}, {}  # fmt: skip


def written(name: str, choice: Choice | None, act_bits: int, folder: Path) -> Path:
    """The file of a model in a format; None: as it is."""
    path = folder / f"{name}_{choice or 'plain'}_{act_bits}.safetensors".replace(" ", "_")
    tensors, metadata = source(name)
    if choice:
        shapes = quantised_layers((key, tuple(x.shape)) for key, x in tensors.items())
        made: dict[tuple, Coded] = {}
        for layer, shape in shapes.items():
            if FORMATS[choice.format].why_not(shape, choice.bits) is None:
                weight = tensors.pop(f"{layer}.weight")
                if shape not in made:
                    made[shape] = tiled(FORMATS[choice.format].encode(weight[:ROWS], choice.bits), shape[0])
                tensors |= {key: x.clone() for key, x in layer_tensors(layer, made[shape], act_bits).items()}
    comfy.utils.save_torch_file({key: x.contiguous() for key, x in tensors.items()}, str(path), metadata=metadata)
    return path


def tiled(coded: Coded, rows: int) -> Coded:
    """A weight of `rows` outputs that has the rows of `coded` over and over."""
    def grown(x: torch.Tensor) -> torch.Tensor:
        return x.repeat(-(-rows // coded.shape[0]), *[1] * (x.ndim - 1))[:rows]

    by_row = coded.table is not None and coded.table.ndim == 2 and len(coded.table) == coded.shape[0]
    table = grown(coded.table) if by_row and FORMATS[coded.format].table_by_row else coded.table
    return replace(coded, shape=(rows, coded.shape[1]), codes=grown(coded.codes), scale=grown(coded.scale), table=table)


def inputs(name: str) -> tuple[list, torch.Tensor]:
    """A conditioning and a latent."""
    _, grid, (tokens, width) = SIZES[name]
    if width is None:
        width = comfy.utils.load_torch_file(
            folder_paths.get_full_path("diffusion_models", "tiny_puppet_t2v.safetensors")
        )["text_embedding.0.weight"].shape[1]
    draw = torch.Generator().manual_seed(1)
    return [[torch.randn(1, tokens, width, generator=draw), {}]], torch.zeros(1, 16, *grid)


def step(model, name: str, steps: int = 1) -> float:
    """Seconds of a step."""
    text, latent = inputs(name)
    device = comfy.model_management.get_torch_device()
    began = time.perf_counter()
    sample(model, text, text, latent, Settings(steps=steps, cfg=1.0))
    synchronize(device) if device.type != "cpu" else None
    return (time.perf_counter() - began) / steps


def child(path: str, name: str) -> None:
    """In a fresh process: load, one step, and print what it took."""
    device = comfy.model_management.get_torch_device()
    base = 0 if device.type == "cuda" else resident_bytes()
    with PeakMemory(device) as memory:
        began = time.perf_counter()
        model = load_quantised_model(path)
        seconds = time.perf_counter() - began
        first = step(model, name)
    print(json.dumps({"load_s": seconds, "first_step_s": first, "peak": memory.bytes - base, "counted": memory.what}))


def fresh(path: Path, args: argparse.Namespace) -> dict:
    """What `child` says."""
    words = [sys.executable, "-m", "bench.quant.cost", "--model", args.model, "--child", str(path)]
    done = subprocess.run([*words, *(["--gpu"] if args.gpu else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{path.name} failed in a process of its own:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def estimate(model, args: argparse.Namespace) -> int:
    """Bytes that Will It Fit tells, less ComfyUI's reserve."""
    text, latent = inputs(args.model)
    need = fit_of(model, {"samples": latent}, Question(PLAIN, None, 2**60, 1, positive=text)).chosen
    return need.whole - need.reserve


def choices(args: argparse.Namespace) -> Iterator[tuple[str, Choice, int]]:
    for form in FORMATS.values():
        for bits in sorted(form.widths, reverse=True):
            for act_bits in args.act_bits:
                name = f"{form.name} {bits} a{act_bits}"
                if any(part in name for part in args.only):
                    yield name, Choice(form.name, bits), act_bits


def run(args: argparse.Namespace, folder: Path) -> None:
    device = comfy.model_management.get_torch_device()
    results = Results(args.json, __doc__, rounds=args.rounds, steps=args.steps, device=str(device),
                      threads=torch.get_num_threads())  # fmt: skip
    plain = written(args.model, None, 16, folder)
    base = load_quantised_model(str(plain))
    results.put(f"{args.model} {PLAIN}", {"file": plain.stat().st_size, **fresh(plain, args),
                                          "told": estimate(base, args)})  # fmt: skip
    step(base, args.model)
    for name, choice, act_bits in choices(args):
        key = f"{args.model} {name}"
        if "ratio" in results.rows.get(key, {}):
            continue
        path = written(args.model, choice, act_bits, folder)
        model = load_quantised_model(str(path))
        step(model, args.model)
        times = [(step(model, args.model, args.steps), step(base, args.model, args.steps)) for _ in range(args.rounds)]
        ours, plainly = (min(column) for column in zip(*times, strict=True))
        results.put(key, {"file": path.stat().st_size, **fresh(path, args), "told": estimate(model, args),
                          "step_s": ours, "plain_step_s": plainly, "ratio": ours / plainly})  # fmt: skip
        del model
        comfy.model_management.unload_all_models()
        path.unlink()


def table(path: Path) -> None:
    """The rows as markdown; MB are millions of bytes."""
    rows = json.loads(path.read_text())["rows"]
    print("| model, weights | file, MB | of plain | load, s | peak, MB | told, MB | step, s | plain step, s | ratio |")
    print("|" + " --- |" * 9)
    for name, row in rows.items():
        plain = rows[f"{name.split()[0]} {PLAIN}"]["file"]
        times = (f"{row[key]:.3f}" if key in row else "" for key in ("step_s", "plain_step_s", "ratio"))
        print(f"| {name} | {row['file'] / 1e6:.1f} | {row['file'] / plain:.3f} | {row['load_s']:.2f} | "
              f"{row['peak'] / 1e6:.0f} | {row['told'] / 1e6:.0f} | {' | '.join(times)} |")  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=SIZES, default="tiny")
    parser.add_argument("--only", nargs="+", default=[""], help="formats whose name has one of these in it")
    parser.add_argument("--act-bits", type=int, nargs="+", choices=ACT_BITS, default=list(ACT_BITS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="end where torch finds no GPU; one is used anyway")
    parser.add_argument("--child", help="for the bench itself")
    parser.add_argument("--table", action="store_true", help="print what is there and end")
    args = parser.parse_args()
    if args.gpu and comfy.model_management.get_torch_device().type == "cpu":
        parser.error("--gpu was given, and torch finds no GPU here")
    if args.child:
        child(args.child, args.model)
    elif args.table:
        table(args.json)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(args, Path(folder))


if __name__ == "__main__":
    main()
