"""A step cache together with what else is on a model: each situation with and without the cache.

    python -m bench.cache.together --json bench/results/cache_together.json

20 steps of dpmpp_2m, taylorseer of order 1 at the preset, tiny checkpoints, the cached clip against the uncached one of
the same situation: PSNR in dB, mean over held-out prompts, and the evaluations that ran. Situations: alone; the two
prompts of CFG in one batch or one after the other; sparse attention (draft, density 0.3) wired before and behind the
cache; a LoRA before and behind it; image to video. Either order of wiring must give the same bits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, SparseAttention, When
from interspatial.models.cache import CACHES, StepCache
from interspatial.models.puppet import scene, world
from interspatial.models.report import Card

import nodes  # ComfyUI's

from ..inprocess import (
    CFG,
    FPS,
    LENGTH,
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

SETTINGS = {"steps": 20, "sampler": "dpmpp_2m"}
LORA = "tiny_puppet_t2v_guided.safetensors"
Situation = Callable[[str, int, Callable], torch.Tensor]


def cache(model):
    return host.attach_step(model, Card("cache", "cache"), StepCache(CACHES["taylorseer"]()))


def sparse(model):
    chosen = SparseAttention(METHODS["draft"](density=0.3), When(), Blocks("tile", 2), "row")
    return host.attach_attention(model, Card("sparse", "sparse"), chosen)


def text(model, prompt: str, seed: int, negative=None) -> torch.Tensor:
    negative = conditioning("") if negative is None else negative
    run = Settings(**SETTINGS, seed=seed)
    return decode(sample(model, conditioning(prompt), negative, empty_latent(), run))


def shorter(cond: list) -> list:
    """A prompt of 21 tokens, which core cannot put into one batch with 32."""
    return [[cond[0][0][:, :21], cond[0][1]]]


def image(model, prompt: str, seed: int) -> torch.Tensor:
    from comfy_extras.nodes_wan import WanImageToVideo

    spec = scene.split_prompts()[1][seed].scene(random.Random(f"judge-{seed}"))
    first = world.pose_scene(spec, LENGTH, SIZE, SIZE, FPS).rgb[:1]
    positive, negative, latent = WanImageToVideo.execute(
        conditioning(prompt), conditioning(""), vae(), SIZE, SIZE, LENGTH, 1, start_image=first).result  # fmt: skip
    return decode(sample(model, positive, negative, latent["samples"], Settings(**SETTINGS, seed=seed)))


def with_lora(model):
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, 1.0)[0]


def situations() -> dict[str, tuple]:
    """Name -> (the model without the cache, the same with it, how a clip is made)."""
    plain, first = video_model("t2v"), video_model("i2v")
    apart = lambda model, prompt, seed: text(model, prompt, seed, shorter(conditioning("")))  # noqa: E731
    return {
        "alone, prompts in one batch": (plain, cache(plain), text),
        "prompts one after the other": (plain, cache(plain), apart),
        "sparse attention, then the cache": (sparse(plain), cache(sparse(plain)), text),
        "the cache, then sparse attention": (sparse(plain), sparse(cache(plain)), text),
        "a LoRA, then the cache": (with_lora(plain), cache(with_lora(plain)), text),
        "the cache, then a LoRA": (with_lora(plain), with_lora(cache(plain)), text),
        "image to video": (first, cache(first), image),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=2)
    args = parser.parse_args()
    prompts = [p.caption() for p in scene.split_prompts()[1][: args.prompts]]
    rows, clips = {}, {}
    print("| situation | PSNR to the same without the cache, dB | report |\n| --- | --- | --- |")
    for name, (without, with_cache, make) in situations().items():
        plain = [make(without, prompt, seed) for seed, prompt in enumerate(prompts)]
        clips[name] = [make(with_cache, prompt, seed) for seed, prompt in enumerate(prompts)]
        value = statistics.mean(psnr(a, b) for a, b in zip(clips[name], plain, strict=True))
        rows[name] = {"psnr": value, "report": host.report_of(with_cache)}
        print(f"| {name} | {value:.1f} | {'; '.join(rows[name]['report'].splitlines())} |", flush=True)
    pairs = {"sparse attention": ("sparse attention, then the cache", "the cache, then sparse attention"),
             "a LoRA": ("a LoRA, then the cache", "the cache, then a LoRA")}  # fmt: skip
    equal = {name: all(map(torch.equal, clips[a], clips[b])) for name, (a, b) in pairs.items()}
    print(f"either order the same bits: {equal}")
    content = {"method": __doc__, "settings": {**SETTINGS, "cfg": CFG, "prompts": args.prompts}, "rows": rows,
               "either order the same bits": equal}  # fmt: skip
    args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
