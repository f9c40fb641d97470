"""Does the tiny text-to-video model follow bodies with its adapter, alone and together with what else is on a model?

    python -m bench.interspatial.adapter --scenes 16

Held-out prompts of the prompt language, each with a scene of its own whose bodies are given; 12 steps of Euler, cfg 4,
one seed a scene. Scored against the rendered truth by the colours of clothes (models/measure/pose_following.py). Rows:
the truth through the VAE (what the VAE lets through), the model without control, with it, another body than the judged
one, the jointly trained control if its run is there, and the controlled model with sparse attention, a step cache, a
quantised host and context windows.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import comfy.sd
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from interspatial.models.control.from_world import body_of_world, camera_of_world
from interspatial.models.host.adapter_files import LoadedAdapter, adapter_of, load_adapter
from interspatial.models.host.quant_loading import load_quantised_model
from interspatial.models.host.quant_sources import FileSource
from interspatial.models.measure.metrics import ssim
from interspatial.models.measure.pose_following import follow
from interspatial.models.puppet.scene import split_prompts
from interspatial.models.puppet.world import World, pose_scene
from interspatial.models.quant.format import FORMATS
from interspatial.models.quant.quantise import layers_of, quantise
from interspatial.models.quant.recipe import Choice, Recipe
from interspatial.nodes.control import InterspatialBodyControl
from safetensors import safe_open

from training.interspatial_adapter import CONFIG, NAME, POINTS
from training.package import CHECKPOINTS, RUNS

from ..inprocess import (
    FPS,
    LENGTH,
    SHIFT,
    SIZE,
    Settings,
    conditioning,
    decode,
    empty_latent,
    psnr,
    sample,
    vae,
    video_model,
)
from ..results_file import Results
from .together import cached, mean, sparse, windowed

OUT = Path(__file__).parent.parent / "results" / "interspatial_adapter.json"
HOST = CHECKPOINTS / "diffusion_models" / "tiny_puppet_t2v.safetensors"
Figures = dict[str, float]


def scenes(count: int) -> list[tuple[str, World]]:
    """Captions and worlds that no training has seen."""
    prompts = split_prompts()[1][:count]
    specs = [prompt.scene(random.Random(f"control-{i}")) for i, prompt in enumerate(prompts)]
    return [(p.caption(), pose_scene(s, LENGTH, SIZE, SIZE, FPS)) for p, s in zip(prompts, specs, strict=True)]


def controlled(model, world: World, adapter: LoadedAdapter):
    return InterspatialBodyControl.execute(model, adapter, body_of_world(world, POINTS), camera_of_world(world)).args[0]


def judged(found: list[tuple[torch.Tensor, World]]) -> Figures:
    """Mean figures over clips, each against its world."""
    scores = [follow(clip, world, token=16) for clip, world in found]
    return {
        "part_error": mean(s.part_error for s in scores), "recall": mean(s.part_recall for s in scores),
        "iou": mean(s.silhouette_iou for s in scores), "jitter": mean(s.jitter for s in scores),
        "psnr": mean(psnr(world.rgb, clip) for clip, world in found),
        "ssim": mean(float(ssim(world.rgb, clip).mean()) for clip, world in found), "clips": len(scores),
    }  # fmt: skip


def run(make: Callable[[World], object], data: list, seed: int = 0) -> list[tuple[torch.Tensor, World]]:
    """Sample each scene with the model that `make` gives for it."""
    clips = []
    for i, (caption, world) in enumerate(data):
        settings = Settings(steps=12, seed=seed + i)
        latent = sample(make(world), conditioning(caption), conditioning(""), empty_latent(), settings)
        clips.append((decode(latent), world))
    return clips


def quantised(choice: str):
    """The host in few bits, through a file as a user would."""
    picked = Choice.parse(choice)
    source = FileSource(HOST)
    shapes = layers_of(source)
    folder = Path(tempfile.mkdtemp())
    recipe = Recipe.same((x for x in shapes if not FORMATS[picked.format].why_not(shapes[x], picked.bits)), picked)
    quantise(source, recipe, folder / "host.safetensors")
    return ModelSamplingSD3().patch(load_quantised_model(str(folder / "host.safetensors"), 8), SHIFT)[0]


def joint():
    """The host and the adapter that learned together, or None where no such training has been done."""
    state = RUNS / "adapter_joint" / "state.pt"
    if not state.exists():
        return None
    average = torch.load(state, weights_only=True)["average"]

    def part(name: str) -> dict:
        return {k[len(name) + 1 :]: v.clone() for k, v in average.items() if k.startswith(f"{name}.")}

    with safe_open(HOST, "pt") as file:  # says how wide the text is
        model = comfy.sd.load_diffusion_model_state_dict(part("host"), metadata=file.metadata())
    return ModelSamplingSD3().patch(model, SHIFT)[0], adapter_of(CONFIG, part("adapter"), torch.float32)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--together", type=int, default=5, help="scenes of the rows with other patches")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    args = parser.parse_args()
    results, data = Results(OUT, __doc__), scenes(args.scenes)
    few, plain = data[: args.together], video_model("t2v")
    adapter = load_adapter(str(CHECKPOINTS / "interspatial_adapters" / f"{NAME}.safetensors"))

    def with_adapter(model, wrap=lambda model: model):
        return lambda world: wrap(controlled(model, world, adapter))

    def through_vae() -> list:
        return [(decode(vae().encode(world.rgb)), world) for _, world in data]

    def other_body() -> list:
        shifted = [(caption, other) for (caption, _), (_, other) in zip(data, data[1:] + data[:1], strict=True)]
        made = run(with_adapter(plain), shifted)
        return [(clip, world) for (clip, _), (_, world) in zip(made, data, strict=True)]

    rows = {
        "truth through the VAE": through_vae,
        "without control": lambda: run(lambda world: plain, data),
        "controlled": lambda: run(with_adapter(plain), data),
        "controlled by another body": other_body,
        "few: controlled": lambda: run(with_adapter(plain), few),
        "few: + sparse, draft 0.3": lambda: run(with_adapter(plain, lambda m: sparse(m, 0.3)), few),
        "few: + step cache": lambda: run(with_adapter(plain, cached), few),
        "few: + windows of 3 latent frames": lambda: run(with_adapter(plain, windowed), few),
        "few: + 8-bit host": lambda: run(with_adapter(quantised("vidit_q 8")), few),
        "few: + 4-bit host": lambda: run(with_adapter(quantised("vidit_q 4")), few),
        "few: + sparse, cache, 8-bit host": lambda: run(
            with_adapter(quantised("vidit_q 8"), lambda m: sparse(cached(m), 0.3)), few),
    }  # fmt: skip
    if (found := joint()) is not None:
        rows["jointly trained"] = lambda: run(lambda world: controlled(found[0], world, found[1]), data)
    for name, make in rows.items():
        if args.only in name and name not in results.rows:
            results.put(name, judged(make()))


if __name__ == "__main__":
    main()
