"""What each weight format costs in quality on the tiny text-to-video model, beside core's formats and the control.

    python -m bench.quant.formats --json bench/results/quant_formats.json [--prompts 60] [--only "vidit_q 4"]
    python -m bench.quant.formats --json bench/results/quant_formats.json --table

Each row is a file that is written, loaded and sampled as users do it: 12 steps of euler at cfg 4 from the same seeds as
the run in float32. PSNR of the decoded clips against that run, mean over held-out prompts; accuracy of shirt, direction
and count as the judge of bench/prompt_following.py has it; relative L2 error of the weights of each layer, mean and
worst; bytes of these layers against bfloat16. `control bfloat16` is the whole model computed in bfloat16, as on a GPU:
what rounding does without a format. Activations of 16 bits are those of the CPU, which computes in float32.

Every finished row is written at once; a later run goes on where one ended.
"""
# N outputs   K inputs

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from interspatial.models.host.quant_loading import load_quantised_model
from interspatial.models.host.quant_sources import FileSource
from interspatial.models.puppet import judge, scene
from interspatial.models.quant.calibration import Calibration
from interspatial.models.quant.format import ACT_BITS, FORMATS
from interspatial.models.quant.quantise import layers_of, quantise
from interspatial.models.quant.recipe import Choice, Recipe
from interspatial.models.quant.weights_file import MARKER, as_marker

from ..inprocess import SHIFT, Settings, conditioning, decode, empty_latent, psnr, sample, video_model
from ..prompt_following import right, wanted
from ..results_file import Results

CORE = {  # name -> format and options of its marker
    "int8_tensorwise": ("int8_tensorwise", {}), "int8_tensorwise convrot": ("int8_tensorwise", {"convrot": True}),
    "float8_e4m3fn": ("float8_e4m3fn", {}), "float8_e5m2": ("float8_e5m2", {}), "mxfp8": ("mxfp8", {}),
    "nvfp4": ("nvfp4", {}), "convrot_w4a4": ("convrot_w4a4", {}),
}  # fmt: skip
GROUP = 256  # of core's rotation; divides the inputs of every layer of the tiny model
SUMMED = ("shirt", "direction", "count")


def source_path() -> str:
    return folder_paths.get_full_path("diffusion_models", "tiny_puppet_t2v.safetensors")


def prompts(count: int) -> list[scene.Prompt]:
    """Held-out ones, those of bench/prompt_following.py."""
    return scene.split_prompts()[1][:count]


def clips(model, args: argparse.Namespace) -> list[torch.Tensor]:
    """One clip a prompt, [F, H, W, 3]."""
    made = []
    for seed, prompt in enumerate(prompts(args.prompts)):
        run = Settings(steps=args.steps, seed=seed)
        made.append(decode(sample(model, conditioning(prompt.caption()), conditioning(""), empty_latent(), run)))
    return made


@lru_cache
def reference(steps: int, count: int) -> list[torch.Tensor]:
    return clips(video_model("t2v"), argparse.Namespace(steps=steps, prompts=count))


def figures(made: list[torch.Tensor], args: argparse.Namespace) -> dict:
    """PSNR to the run in float32, and what the judge says in percent."""
    likeness = [psnr(clip, clean) for clip, clean in zip(made, reference(args.steps, args.prompts), strict=True)]
    goals = [wanted(prompt) for prompt in prompts(args.prompts)]
    scores = torch.stack([right(judge.judge(clip), goal) for clip, goal in zip(made, goals, strict=True)]).mean(0)
    named = dict(zip(SUMMED, (100 * scores).tolist(), strict=True))
    return {"psnr": sum(likeness) / len(likeness), "least_psnr": min(likeness), **named,
            "accuracy": 100 * float(scores.mean())}  # fmt: skip


def loaded(path: str | Path, act_bits: int):
    return ModelSamplingSD3().patch(load_quantised_model(str(path), act_bits), SHIFT)[0]


def ours(choice: Choice, act_bits: int, args: argparse.Namespace) -> dict:
    """A row of one of this pack's formats."""
    source = FileSource(source_path())
    shapes = layers_of(source)
    recipe = Recipe.same((x for x in shapes if not FORMATS[choice.format].why_not(shapes[x], choice.bits)), choice)
    calibration = Calibration.load(args.calibration) if args.calibration else None
    told = "_calibrated" if calibration else ""
    path = args.files / f"{choice.format}_{choice.bits}{told}.safetensors"
    done = quantise(source, recipe, path, calibration)  # one file for all act_bits: the loader is told
    errors = [layer.error for layer in done.layers.values()]
    row = {"layers": len(errors), "of_bf16": sum(layer.after for layer in done.layers.values())
           / sum(2 * layer.weights for layer in done.layers.values()), **summary(errors)}  # fmt: skip
    return row | figures(clips(loaded(path, act_bits), args), args)


def core(name: str, args: argparse.Namespace) -> dict:
    """A row of one of ComfyUI's own formats, in a file as ComfyUI reads it."""
    form, options = CORE[name]
    tensors, metadata = comfy.utils.load_torch_file(source_path(), return_metadata=True)
    shapes, errors, size, full = layers_of(FileSource(source_path())), [], 0, 0
    for layer in shapes:
        weight = tensors.pop(f"{layer}.weight").float()
        kept = QuantizedTensor.from_float(weight, QUANT_ALGOS[form]["comfy_tensor_layout"], **core_options(name))
        parts = kept.state_dict(f"{layer}.weight")
        errors.append(float((kept.dequantize().float() - weight).norm() / weight.norm()))
        size, full = size + sum(part.nbytes for part in parts.values()), full + 2 * weight.numel()
        conf = {"format": form, **options} | ({"convrot_groupsize": GROUP} if options else {})
        tensors |= {**parts, f"{layer}.{MARKER}": as_marker(conf)}
    path = args.files / f"core_{name}.safetensors".replace(" ", "_")
    comfy.utils.save_torch_file({key: x.contiguous() for key, x in tensors.items()}, str(path), metadata=metadata)
    row = {"layers": len(errors), "of_bf16": size / full, **summary(errors)}
    return row | figures(clips(loaded(path, 0), args), args)


def core_options(name: str) -> dict:
    """How the layout is asked to quantise: the scale from the weight, one for each row where int8 has that."""
    if name.startswith("int8"):
        rotated = "convrot" in name
        return {"per_channel": True} | ({"convrot": True, "convrot_groupsize": GROUP} if rotated else {})
    return {} if name in ("mxfp8", "convrot_w4a4") else {"scale": "recalculate"}


def summary(errors: list[float]) -> dict:
    return {"error": sum(errors) / len(errors), "worst_error": max(errors)}


def control(args: argparse.Namespace) -> dict:
    """The whole model in bfloat16."""
    cast = comfy.model_management.unet_manual_cast
    comfy.model_management.unet_manual_cast = lambda *args, **kwargs: None  # on a CPU ComfyUI would compute in float32
    try:
        model = comfy.sd.load_diffusion_model(source_path(), model_options={"dtype": torch.bfloat16})
    finally:
        comfy.model_management.unet_manual_cast = cast
    return figures(clips(ModelSamplingSD3().patch(model, SHIFT)[0], args), args)


def rows(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Name of each row and how to make it."""
    yield "reference float32", lambda: figures(reference(args.steps, args.prompts), args)
    yield "control bfloat16", lambda: control(args)
    for name in CORE:
        yield f"core {name}", lambda name=name: core(name, args)
    told = " calibrated" if args.calibration else ""
    for form in FORMATS.values():
        for bits in sorted(form.widths, reverse=True):
            for act_bits in args.act_bits:
                choice = Choice(form.name, bits)
                yield f"{choice} a{act_bits}{told if form.needs else ''}", (
                    lambda choice=choice, act_bits=act_bits: ours(choice, act_bits, args))  # fmt: skip


def run(args: argparse.Namespace) -> None:
    calibration = args.calibration and args.calibration.name
    results = Results(args.json, __doc__, steps=args.steps, cfg=Settings().cfg, prompts=args.prompts,
                      calibration=calibration)  # fmt: skip
    for name, make in rows(args):
        if name in results.rows or not any(part in name for part in args.only):
            continue
        try:
            results.put(name, make())
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if not name.startswith("core"):
                raise
            print(f"{name} does not run here: {type(error).__name__}: {str(error)[:200]}", flush=True)


def table(path: Path) -> None:
    """The rows as markdown."""
    print("| weights | of bf16 | error, mean | worst layer | PSNR, dB | least | shirt | direction | count | accuracy |")
    print("|" + " --- |" * 10)
    columns = (("of_bf16", ".4f"), ("error", ".4f"), ("worst_error", ".4f"), ("psnr", ".2f"), ("least_psnr", ".2f"),
               *((name, ".1f") for name in SUMMED), ("accuracy", ".1f"))  # fmt: skip
    for name, row in json.loads(path.read_text())["rows"].items():
        cells = (format(row[key], spec) if key in row else "" for key, spec in columns)
        print(f"| {name} | {' | '.join(cells)} |")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--act-bits", type=int, nargs="+", choices=ACT_BITS, default=list(ACT_BITS))
    parser.add_argument("--calibration", type=Path, help="a file that Calibrate Activations wrote")
    parser.add_argument("--files", type=Path, help="keep the quantised files here, so that a later run has them")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these in it")
    parser.add_argument("--table", action="store_true", help="print what is there and end")
    args = parser.parse_args()
    if args.table:
        table(args.json)
    elif args.files:
        run(args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            args.files = Path(folder)
            run(args)


if __name__ == "__main__":
    main()
