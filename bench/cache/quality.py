"""What a step cache gains over fewer steps, on the tiny text-to-video model: evaluations spent against PSNR.

    python -m bench.cache.quality --json bench/results/cache_quality.json [--parts controls caches settings together]
    python -m bench.cache.quality --json bench/results/cache_quality.json --table

Reference: 100 steps of dpmpp_2m, schedule simple, the same seed (res_multistep ends within 88 dB of it, euler at 39 to
45 dB). A row is the PSNR of the decoded clips to it, in dB, mean over held-out prompts.

Cost: evaluations of the model, counted as block forwards over blocks and prompts, so a step that runs half of the
blocks is half an evaluation; a step with guidance is one evaluation for both prompts.

Controls: fewer steps with euler, res_multistep, dpmpp_2m and uni_pc; for each cache the best of those with as many
evaluations or up to half a one more. And, harder, "same places": a run of the same sampler on the very sigmas at which
the cached run evaluated the model, so that only the forecasts between them are the difference.

Every finished row is written at once; a later run goes on where one ended.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import comfy.sample
import comfy.samplers
import torch
from interspatial.models import host
from interspatial.models.cache import CACHES, PACES, StepCache
from interspatial.models.cache.step_cache import StepCache as Config
from interspatial.models.families import bare
from interspatial.models.puppet import scene
from interspatial.models.report import Card

from ..inprocess import CFG, Settings, conditioning, decode, empty_latent, psnr, sample, video_model
from ..results_file import Results

CONTROLS = ("euler", "res_multistep", "dpmpp_2m", "uni_pc")
STEPS = (50, 20, 8)
BASES = ("dpmpp_2m", "euler")   # what is cached: the better and the simpler habit
REFERENCE = ("dpmpp_2m", 100)
FIXED = {50: (15, 3), 20: (6, 2), 8: (4, 2)}   # warm-up, interval: the same places for every predictor


def caches() -> dict[str, Config]:
    """Every method with its own settings on the same places, at the preset, and with each pace."""
    made = {}
    for steps, (first, interval) in FIXED.items():
        fixed = {"pace": PACES["fixed"](interval), "first": first, "last": 1}
        for name, method in variants().items():
            made[f"{steps} {name}"] = StepCache(method, **fixed)
        made[f"{steps} taylorseer, last block"] = StepCache(CACHES["taylorseer"](), **fixed, site="last block")
        made[f"{steps} taylorseer, modules"] = StepCache(CACHES["taylorseer"](), **fixed, site="modules")
        if steps >= 12:
            made[f"{steps} taylorseer, preset"] = StepCache(CACHES["taylorseer"]())
        for pace in ("growing", "seacache"):
            made[f"{steps} taylorseer, {pace}"] = StepCache(CACHES["taylorseer"](), PACES[pace](), first, 1)
    return made


def variants() -> dict[str, object]:
    taylor = CACHES["taylorseer"]
    return {
        "reuse": CACHES["reuse"](),
        "taylorseer": taylor(),
        "taylorseer, order 2": taylor(2),
        **{f"taylorseer, {name}": taylor(1, name) for name in ("paper", "damped", "hermite")},
        "spectrum": CACHES["spectrum"](),
        "delta_dit": CACHES["delta_dit"](),
        "first_block": CACHES["first_block"](),
    }


def prompts(count: int) -> list:
    return [p.caption() for p in scene.split_prompts()[1][:count]]


@contextmanager
def counted(model) -> Iterator[dict]:
    """Within, "blocks" counts block forwards times rows of the batch."""
    found = {"blocks": 0.0}
    blocks = bare(model.get_model_object("diffusion_model")).blocks

    def count(module, args, out) -> None:
        found["blocks"] += len(out)

    hooks = [block.self_attn.q.register_forward_hook(count) for block in blocks]   # inside all that a cache covers
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found["evaluations"] = found["blocks"] / len(blocks) / 2


def measure(model, settings: Settings, args: argparse.Namespace, sigmas: torch.Tensor | None = None) -> dict:
    """PSNR to the reference, mean and each, and evaluations a clip. sigmas: in place of the settings' schedule"""
    found, spent = [], []
    for seed, prompt in enumerate(prompts(args.prompts)):
        with counted(model) as count:
            if sigmas is None:
                run = Settings(settings.steps, CFG, settings.sampler, "simple", seed)
                latent = sample(model, conditioning(prompt), conditioning(""), empty_latent(), run)
            else:
                latent = on_sigmas(model, prompt, sigmas, settings.sampler, seed)
        found.append(psnr(decode(latent), reference(seed, args.prompts)))
        spent.append(count["evaluations"])
    return {"psnr": statistics.mean(found), "each": found, "evaluations": statistics.mean(spent)}


def on_sigmas(model, prompt: str, sigmas: torch.Tensor, sampler: str, seed: int) -> torch.Tensor:
    noise = comfy.sample.prepare_noise(empty_latent(), seed)
    return comfy.sample.sample_custom(model, noise, CFG, comfy.samplers.sampler_object(sampler), sigmas,
                                      conditioning(prompt), conditioning(""), empty_latent(), seed=seed)  # fmt: skip


@lru_cache
def reference(seed: int, count: int) -> torch.Tensor:
    path = Path(__file__).parent.parent / "out" / f"cache_reference_{seed}.pt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        run = Settings(REFERENCE[1], CFG, REFERENCE[0], "simple", seed)
        latent = sample(video_model("t2v"), conditioning(prompts(count)[seed]), conditioning(""), empty_latent(), run)
        torch.save(decode(latent), path)
    return torch.load(path, weights_only=True)


def cached(config: Config, model=None):
    return host.attach_step(video_model("t2v") if model is None else model, Card("cache", "cache"), config)


def places(steps: int, config: Config) -> torch.Tensor:
    """The sigmas at which a fixed pace evaluates the model, and the end."""
    sampling = video_model("t2v").get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    first, interval = config.first, config.pace.interval
    ran = [i for i in range(steps)
           if i < first or i >= steps - config.last or (i - first + 1) % interval == 0]  # fmt: skip
    return torch.cat([sigmas[ran], sigmas[-1:]])


def run(args: argparse.Namespace) -> None:
    results = Results(args.json, __doc__, prompts=args.prompts, cfg=CFG)
    for name, model, settings, sigmas in rows(args):
        if name not in results.rows:
            row = measure(model, settings, args, sigmas)
            results.put(name, {**row, "report": host.report_of(model).splitlines()[:1]})


def rows(args: argparse.Namespace) -> Iterator[tuple]:
    """Name, model, settings and sigmas of each row, in the order of their worth."""
    for name, config in caches().items() if "caches" in args.parts else ():
        steps = int(name.split()[0])
        for base in args.bases:
            yield f"cache {base} {name}", cached(config), Settings(steps, sampler=base), None
    for steps, (first, interval) in FIXED.items() if "places" in args.parts else ():
        config = StepCache(CACHES["taylorseer"](), PACES["fixed"](interval), first, 1)
        for base in args.bases:
            yield f"places {base} {steps}", video_model("t2v"), Settings(0, sampler=base), places(steps, config)
    for steps in args.controls if "controls" in args.parts else ():
        for base in CONTROLS:
            yield f"control {base} {steps}", video_model("t2v"), Settings(steps, sampler=base), None


def best_control(found: dict, evaluations: float) -> tuple[str, float] | None:
    """The best control with as many evaluations, or up to half a one more, and its PSNR."""
    fair = [(row["psnr"], name) for name, row in found.items()
            if name.startswith("control") and evaluations - 1 < row["evaluations"] <= evaluations + 0.5]  # fmt: skip
    return None if not fair else (" ".join(max(fair)[1].split()[1:]), max(fair)[0])


def table(path: Path) -> None:
    """The rows as markdown."""
    found = json.loads(path.read_text())["rows"]
    for steps in STEPS:
        print(f"\n## {steps} nominal steps\n\n| cached sampler | method | evaluations | PSNR, dB | best control | its "
              f"PSNR | gain, dB |\n|{' --- |' * 7}")
        for name, row in found.items():
            kind, base, *rest = name.split(maxsplit=3)
            if kind == "cache" and int(rest[0]) == steps:
                control = best_control(found, row["evaluations"])
                beside = f"{control[0]} | {control[1]:.1f} | {row['psnr'] - control[1]:+.1f}" if control else " | | "
                print(f"| {base} | {rest[1]} | {row['evaluations']:.1f} | {row['psnr']:.1f} | {beside} |")
            elif kind == "places" and int(rest[0]) == steps:
                print(f"| {base} | same places, no forecasts | {row['evaluations']:.1f} | {row['psnr']:.1f} | | | |")
    print(f"\n## Fewer steps\n\n| sampler | steps | PSNR, dB |\n|{' --- |' * 3}")
    for name, row in found.items():
        if name.startswith("control"):
            print(f"| {' | '.join(name.split()[1:])} | {row['psnr']:.1f} |")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parts = ["caches", "places", "controls"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--bases", nargs="+", choices=CONTROLS, default=list(BASES))
    parser.add_argument("--controls", type=int, nargs="+",
                        default=[50, 28, 27, 26, 24, 22, 20, 16, 14, 13, 12, 10, 8, 7, 6, 5])
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what is there and end")
    args = parser.parse_args()
    table(args.json) if args.table else run(args)


if __name__ == "__main__":
    main()
