"""Dynamic routers on the tiny text-to-video model: FLOPs, seconds, and whether clips still do what the prompt says.

    python -m bench.cache.dydit [--count 60] [--only dynamic]     # resumes; writes bench/results/dydit.json

    base        the shipped checkpoint
    complete    with the router file's changed weights, everything computed
    dynamic     with its routers
    surrogate   control: the shipped weights, untrained choices, as many heads, groups and tokens in each block and step
                as the routers: heads and groups by the size of their weights, tokens by a random router
    fewer       control: the shipped checkpoint in fewer steps, at the FLOPs of `dynamic` or a little more
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from interspatial.models.dynamic.dynamic_model import DynamicModel
from interspatial.models.dynamic.plan import BlockPlan
from interspatial.models.dynamic.router_file import read_router
from interspatial.models.dynamic.routers import Affine, TokenHead
from interspatial.models.host.layers import with_weights
from interspatial.models.puppet import judge, scene
from interspatial.models.report import Card
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..inprocess import Settings, conditioning, decode, empty_latent, host, psnr, sample, video_model
from ..prompt_following import right, wanted

ROOT = Path(__file__).parents[2]
ROUTERS = ROOT / "checkpoints" / "dynamic_routers" / "tiny_puppet_t2v.safetensors"
RESULTS = ROOT / "bench" / "results" / "dydit.json"
STEPS, CFG, REPEATS = 12, 4.0, 5


@dataclass(frozen=True)
class Surrogate(DynamicModel):
    """The counts of trained routers, with choices that nobody trained."""

    def plan(self, memory, model, schedule, place, device) -> list[BlockPlan]:
        trained = super().plan(memory, model, schedule, place, device)
        memory.routers = [_random(router, i) for i, router in enumerate(self.file.routers)]
        return [
            replace(plan, heads=plan.heads and _largest(_heads(block.self_attn), len(plan.heads)),
                    groups=plan.groups and _largest(_groups(block.ffn, self.file.groups), len(plan.groups)))
            for plan, block in zip(trained, model.blocks, strict=True)
        ]  # fmt: skip


def _largest(sizes: Tensor, k: int) -> tuple[int, ...]:
    return tuple(sorted(sizes.topk(k).indices.tolist()))


def _heads(attention) -> Tensor:
    return attention.o.weight.float().unflatten(1, (attention.num_heads, -1)).square().sum((0, 2))


def _groups(ffn, groups: int) -> Tensor:
    inside = ffn[0].weight.float().unflatten(0, (groups, -1)).square().sum((1, 2))
    return inside * ffn[2].weight.float().unflatten(1, (groups, -1)).square().sum((0, 2))


def _random(router, seed: int):
    generator = torch.Generator().manual_seed(seed)
    first, second = router.tokens.first.weight.shape, router.tokens.second.weight.shape
    return replace(router, tokens=TokenHead(*(
        Affine(torch.randn(*shape, generator=generator), torch.zeros(shape[0])) for shape in (first, second)
    )))  # fmt: skip


def model_of(variant: str):
    base = video_model("t2v")
    if variant in ("base", "fewer"):
        return base
    file = read_router(ROUTERS)
    if variant == "surrogate":
        return host.attach_step(base, Card("surrogate", "dynamic"), Surrogate(file))
    changed = with_weights(base, file.changes)
    return changed if variant == "complete" else host.attach_step(changed, Card("dynamic", "dynamic"),
                                                                  DynamicModel(file))  # fmt: skip


def latent_of(model, prompt, seed: int, steps: int) -> Tensor:
    settings = Settings(steps=steps, cfg=CFG, seed=seed)
    return sample(model, conditioning(prompt.caption()), conditioning(""), empty_latent(), settings)


def _attention_flops(q, k, v, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(q, k, v)


# torch 2.11 counts attention on a GPU, and not the CPU's
UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def flops(variant: str, steps: int) -> int:
    """Of a whole run, counted by torch on what is really called."""
    prompt = scene.split_prompts()[1][0]
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        latent_of(model_of(variant), prompt, 0, steps)
    return counter.get_total_flops()


def seconds(variants: dict[str, int]) -> dict[str, float]:
    """Process CPU time of a run, median of some runs in turn, after one that is not counted."""
    prompt, found = scene.split_prompts()[1][0], {name: [] for name in variants}
    for i in range(REPEATS + 1):
        for name, steps in variants.items():
            model, began = model_of(name), time.process_time()
            latent_of(model, prompt, 0, steps)
            if i:
                found[name].append(time.process_time() - began)
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


def follow(variant: str, steps: int, count: int, results: dict) -> None:
    """Score prompts that are not scored yet. Kept for each prompt: shirt, direction, count right or not, as "110"."""
    model = model_of(variant)
    scores = results.setdefault("scores", {}).get(variant, "").split()
    for i, prompt in list(enumerate(scene.split_prompts()[1][:count]))[len(scores) :]:
        clip = decode(latent_of(model, prompt, i, steps))
        scores.append("".join(str(int(s)) for s in right(judge.judge(clip), wanted(prompt)).tolist()))
        results["scores"][variant] = " ".join(scores)
        if (i + 1) % 5 == 0:
            write(results)
            shares = [100 * column.count("1") / len(scores) for column in zip(*scores, strict=True)]
            print(variant, len(scores), *(f"{share:.1f}" for share in shares), flush=True)
    if model is not video_model("t2v"):
        results.setdefault("reports", {})[variant] = host.report_of(model)
    write(results)


def distance(variant: str, steps: int) -> dict[str, float]:
    """To the base's clip of the same seed: PSNR in dB and relative L2 of the latent, first four prompts."""
    decibels, errors = [], []
    for i, prompt in enumerate(scene.split_prompts()[1][:4]):
        want, found = latent_of(model_of("base"), prompt, i, STEPS), latent_of(model_of(variant), prompt, i, steps)
        decibels.append(psnr(decode(found), decode(want)))
        errors.append(float((found - want).norm() / want.norm()))
    return {"psnr": round(statistics.mean(decibels), 2), "latent": round(statistics.mean(errors), 3)}


def write(results: dict) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--only", default="base,dynamic,surrogate,fewer,complete")
    parser.add_argument("--fewer", type=int, default=0, help="steps of `fewer`; 0: from the FLOPs")
    parser.add_argument("--costs", action="store_true", help="FLOPs, seconds and distances, no accuracy")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    names = args.only.split(",")
    if args.costs:
        counted = {name: flops(name, STEPS) for name in ("base", "dynamic", "surrogate")}
        few = math.ceil(STEPS * counted["dynamic"] / counted["base"])
        steps = {name: few if name == "fewer" else STEPS for name in names}
        results |= {"flops": counted | {"fewer": flops("fewer", few)}, "steps": steps, "seconds": seconds(steps),
                    "distance": {name: distance(name, n) for name, n in steps.items() if name != "base"}}  # fmt: skip
        write(results)
        return
    few = args.fewer or results.get("steps", {}).get("fewer")
    for name in names:
        follow(name, few if name == "fewer" else STEPS, args.count, results)


if __name__ == "__main__":
    main()
