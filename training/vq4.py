"""Makes the text-to-video model of 2 or 3 bits: quantised with what its layers see, then refined against the model.

    python -m training.vq4 --bits 2        # goes on at the block where it stopped

No clip is used: the model samples training prompts from noise, and the quantised one learns from what its blocks do.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from safetensors.torch import load_file, save_file

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from interspatial.models import host  # noqa: E402
from interspatial.models.host.block_replay import recorded  # noqa: E402
from interspatial.models.host.quant_loading import load_quantised_model  # noqa: E402
from interspatial.models.host.quant_sources import FileSource  # noqa: E402
from interspatial.models.host.refine_file import RefinedFile, refine_file  # noqa: E402
from interspatial.models.host.refining import network_of  # noqa: E402
from interspatial.models.puppet import scene  # noqa: E402
from interspatial.models.quant.quantise import layers_of, quantise  # noqa: E402
from interspatial.models.quant.recipe import Choice, Recipe  # noqa: E402
from interspatial.models.quant.refine import Effort  # noqa: E402
from interspatial.models.quant.watch import GRAM_BYTES, ActivationWatch, Findings  # noqa: E402
from interspatial.models.report import Card  # noqa: E402

from bench import inprocess  # noqa: E402

PROMPTS, STEPS, EVERY, SEED = 16, 12, 2, 1000
EFFORT = Effort(400, rounds=3, passes=3)
FOLDER = CHECKPOINTS / "diffusion_models"
SOURCE = FOLDER / "tiny_puppet_t2v.safetensors"


def sampled(model):
    """Statistics of the layers, and evaluations of the model, over the training prompts."""
    findings = Findings(gram_bytes=GRAM_BYTES)
    watched = host.attach_step(model, Card("activations", "measure"), ActivationWatch(findings))
    network, evaluations = network_of(model), []
    none, empty = inprocess.conditioning(""), inprocess.empty_latent()
    for i, prompt in enumerate(scene.split_prompts()[0][:PROMPTS]):
        settings = inprocess.Settings(steps=STEPS, seed=SEED + i)
        words = inprocess.conditioning(prompt.caption())
        evaluations += recorded(network, lambda w=words, s=settings: inprocess.sample(watched, w, none, empty, s))
        print(f"prompt {i + 1} of {PROMPTS}", flush=True)
    return findings.calibration(), evaluations[::EVERY]


@torch.inference_mode()
def make(bits: int) -> RefinedFile:
    folder = RUNS / f"vq4_{bits}"
    folder.mkdir(parents=True, exist_ok=True)
    model = inprocess.video_model("t2v")
    calibration, evaluations = sampled(model)
    source = FileSource(SOURCE)
    recipe = Recipe.same(layers_of(source), Choice("vq4", bits))
    print("\n".join(quantise(source, recipe, folder / "plain.safetensors", calibration).lines()), flush=True)
    plain, count = FileSource(folder / "plain.safetensors"), 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count % 100 == 0:
            print(f"{count} evaluations and iterations, {time.strftime('%H:%M:%S')}", flush=True)

    return refine_file(model, load_quantised_model(str(plain.path)), plain, lambda: evaluations, f"seed {SEED}",
                       folder / "refined.safetensors", EFFORT, tick)  # fmt: skip


def export(done: RefinedFile, bits: int, seconds: float) -> None:
    """The checkpoint and its card."""
    tensors, path = load_file(done.path), FOLDER / f"tiny_puppet_t2v_vq4_{bits}bit.safetensors"
    before, after = (sum(pair[i] for pair in done.errors.values()) / len(done.errors) for i in (0, 1))
    made = {
        "what": f"tiny_puppet_t2v with its 60 linear layers in {bits} bits, VQ4DiT: error feedback, then refined",
        "data": f"none; {PROMPTS} training prompts sampled by the model itself, {STEPS} steps, guidance "
                f"{inprocess.CFG}, every {EVERY}nd evaluation",
        "loss": "squared output of each block against the model's, with the inputs of the refined blocks before",
        "error of a block": f"{before:.4f} before, {after:.4f} after, squared, over what the block adds",
        "steps": f"{EFFORT.iterations} of each block, in {EFFORT.rounds} rounds",
        "batch": "one evaluation, with and without the prompt", "seconds": round(seconds),
        "device": "1 CPU core, shared", "seed": SEED,
    }  # fmt: skip
    part = path.with_suffix(".part")
    save_file(tensors, part, {"made": json.dumps(made), "config": FileSource(SOURCE).metadata["config"]})
    part.replace(path)
    rows = "\n".join(f"| {key} | {value} |" for key, value in made.items())
    path.with_suffix(".md").write_text(
        f"# {path.stem}\n\n6.99 M parameters, {path.stat().st_size / 1e6:.1f} MB, Apache-2.0. Load it with Load "
        f"Quantized Video Model.\n\n| | |\n| --- | --- |\n{rows}\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, choices=(2, 3), default=2)
    args = parser.parse_args()
    began = time.time()
    result = make(args.bits)
    print("\n".join(result.lines()), flush=True)
    export(result, args.bits, time.time() - began)
