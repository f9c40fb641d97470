"""Is a LoRA's effect on a quantised model what it is on the model itself? On the tiny model, and a LoRA trained on it.

    python -m bench.quant.lora --json bench/results/quant_lora.json [--formats rtn lrq] [--bits 3 4] [--act-bits 8 16]
    python -m bench.quant.lora --json bench/results/quant_lora.json --table

Effect: what one evaluation gives (the clean latent it predicts) with the LoRA at strength 1, less what it gives
without; at 4 noise levels of 4 held-out prompts, on the noisy latents of a run of the model itself. Two cosines of it,
over each evaluation:

- with the effect on the float32 model: how much is left of what the LoRA does, coarse weights and all
- with the effect on a float32 model that has the decoded weights: how much the way of applying it loses

"rounded" is ComfyUI's way (decode, add, round by chance again), "beside" adds the product to the layer's output; a
format does the second at its `side` bits and below, and both are measured everywhere. Weights: what the LoRA makes of
the decoded ones, less these; cosine with its own product, over all layers at once. Rows are written as they come; a
later run goes on where one ended.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from interspatial.models.host.quant_loading import load_quantised_model
from interspatial.models.puppet import scene
from interspatial.models.quant.format import FORMATS, Coded, dense
from interspatial.models.quant.layers import quantised_layers
from interspatial.models.quant.weights_file import layer_tensors
from torch import Tensor

import nodes

from ..inprocess import SHIFT, conditioning, empty_latent, video_model
from ..results_file import Results

LORA, MODEL = "tiny_puppet_t2v_guided.safetensors", "tiny_puppet_t2v.safetensors"
SIGMAS, PROMPTS = 4, 4


def tiny_file() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the model."""
    path = folder_paths.get_full_path_or_raise("diffusion_models", MODEL)
    return comfy.utils.load_torch_file(path, return_metadata=True)


def weights_of(name: str, bits: int) -> tuple[dict[str, Tensor], dict[str, Coded]]:
    """The model's other tensors, and all its layers in one format."""
    tensors, _ = tiny_file()
    layers = quantised_layers((key, tuple(x.shape)) for key, x in tensors.items())
    coded = {layer: FORMATS[name].encode(tensors.pop(f"{layer}.weight").float(), bits) for layer in layers}
    return tensors, coded


def quantised_model(rest: dict[str, Tensor], coded: dict[str, Coded], act_bits: int, folder: str):
    """MODEL of a file that is written there."""
    path, tensors = str(Path(folder) / "model.safetensors"), dict(rest)
    for layer, weight in coded.items():
        tensors.update(layer_tensors(layer, weight, act_bits))
    comfy.utils.save_torch_file({key: x.contiguous() for key, x in tensors.items()}, path, tiny_file()[1])
    return shifted(load_quantised_model(path))


def decoded_model(rest: dict[str, Tensor], coded: dict[str, Coded]):
    """MODEL in float32 that has the decoded weights."""
    tensors = {key: x.float() for key, x in rest.items()}
    tensors |= {f"{layer}.weight": dense(weight) for layer, weight in coded.items()}
    return shifted(comfy.sd.load_diffusion_model_state_dict(tensors, {"dtype": torch.float32}, tiny_file()[1]))


def shifted(model):
    return ModelSamplingSD3().patch(model, SHIFT)[0]


class Looks:
    """A sampler that evaluates the model on given latents, or on those of an Euler run, and keeps what it gives."""

    def __init__(self, latents: list[Tensor] | None = None) -> None:
        self.latents, self.seen, self.given = latents, [], []

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None) -> Tensor:
        for i, sigma in enumerate(sigmas[:-1]):
            x = x if self.latents is None else self.latents[i]
            clean = model(x, sigma.expand(len(x)), **(extra_args or {}))
            self.seen.append(x)
            self.given.append(clean)
            x = clean + (x - clean) / sigma * sigmas[i + 1]
        return x


def looked(model, prompt: str, seed: int, latents: list[Tensor] | None = None) -> Looks:
    looks, latent = Looks(latents), empty_latent()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", SIGMAS)
    comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(latent, seed), 1.0, comfy.samplers.KSAMPLER(looks), sigmas,
        conditioning(prompt), conditioning(""), latent, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return looks


def with_lora(model):
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, 1.0)[0]


def effects(model, latents: list[list[Tensor]]) -> list[Tensor]:
    """[P*S] of [1, C, T, h, w]: by prompt, then by noise level."""
    found = []
    for seed, (prompt, seen) in enumerate(zip(prompts(), latents, strict=True)):
        plain, changed = (looked(m, prompt, seed, seen).given for m in (model, with_lora(model)))
        found += [b - a for a, b in zip(plain, changed, strict=True)]
    return found


def prompts() -> list[str]:
    return [prompt.caption() for prompt in scene.split_prompts()[1][:PROMPTS]]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def changed_weights(model) -> float:
    """Cosine of the change that rounding leaves of the LoRA with the LoRA itself, over all its layers at once."""
    patcher, dot, norms = with_lora(model), 0.0, [0.0, 0.0]
    for key, patches in patcher.patches.items():
        weight = comfy.utils.get_attr(patcher.model, key)
        wanted = comfy.lora.calculate_weight(patches, torch.zeros(weight.shape), key).double()
        before = weight.dequantize().float()
        whole = comfy.lora.calculate_weight(patches, before.clone(), key)
        seed = comfy.utils.string_to_seed(key)
        after = weight.requantize_from_float(whole, scale="recalculate", stochastic_rounding=seed).dequantize()
        found = (after - before).double()
        dot += float((wanted * found).sum())
        norms = [norm + float(x.square().sum()) for norm, x in zip(norms, (wanted, found), strict=True)]
    return dot / (norms[0] * norms[1]) ** 0.5


@contextmanager
def side_at(name: str, bits: int) -> Iterator[None]:
    """Within, LoRAs go beside layers of this format at these bits and below."""
    with mock.patch.object(type(FORMATS[name]), "side", bits):
        yield


def measure(results: Results, name: str, bits: int, act_bits: list[int], latents: list, wanted: list[Tensor]) -> None:
    began = time.perf_counter()
    rest, coded = weights_of(name, bits)
    seconds = time.perf_counter() - began
    own = effects(decoded_model(rest, coded), latents)
    for act in act_bits:
        with tempfile.TemporaryDirectory() as folder:
            model = quantised_model(rest, coded, act, folder)
            for way, side in (("rounded", 0), ("beside", bits)):
                with side_at(name, side):
                    row = compared(model, latents, wanted, own)
                if way == "rounded":
                    row |= {"weights": changed_weights(model), "seconds of encoding": seconds}
                results.put(f"{name} {bits}, activations {act}, {way}", row)


def compared(model, latents: list, wanted: list[Tensor], own: list[Tensor]) -> dict:
    """Effects on a quantised model beside those on the float32 one and on one that has its own weights."""
    words, found = f"beside {len(with_lora(model).beside())} layers", effects(model, latents)
    comfy.model_management.unload_all_models()
    whole, alone = ([cosine(a, b) for a, b in zip(found, goal, strict=True)] for goal in (wanted, own))
    by_sigma = [sum(whole[i::SIGMAS]) / PROMPTS for i in range(SIGMAS)]
    return {"mean": sum(whole) / len(whole), "least": min(whole), "by_sigma": by_sigma, "words": words,
            "own weights, mean": sum(alone) / len(alone), "own weights, least": min(alone)}  # fmt: skip


def table(rows: dict[str, dict]) -> str:
    columns = ("format and bits", "activations", "LoRA", "as on float32", "least", "as on own weights", "least",
               "weights")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "| --- | ---: | --- |" + " ---: |" * 5]
    for name, row in rows.items():
        form, act, way = name.split(", ")
        cells = [f"{row[key]:.4f}" for key in ("mean", "least", "own weights, mean", "own weights, least")]
        weights = f"{row['weights']:.3f}" if "weights" in row else "1"
        lines.append(f"| {form} | {act.split()[1]} | {way} | {' | '.join(cells)} | {weights} |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--bits", nargs="+", type=int)
    parser.add_argument("--act-bits", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.json.read_text())["rows"]))
        return
    results = Results(args.json, __doc__, model=MODEL, lora=LORA, sigmas=SIGMAS, prompts=prompts())
    base = video_model("t2v")
    latents = [looked(base, prompt, seed).seen for seed, prompt in enumerate(prompts())]
    wanted = effects(base, latents)
    for name in args.formats:
        for bits in sorted(FORMATS[name].widths, reverse=True):
            left = [act for act in args.act_bits if f"{name} {bits}, activations {act}, beside" not in results.rows]
            if left and bits in (args.bits or FORMATS[name].widths):
                measure(results, name, bits, left, latents, wanted)


if __name__ == "__main__":
    main()
