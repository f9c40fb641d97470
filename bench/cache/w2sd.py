"""Does reflection pay? Prompt following and motion at equal numbers of model evaluations, on the tiny model.

    python -m bench.cache.w2sd --json bench/results/w2sd.json [--count 60]
    python -m bench.cache.w2sd --json bench/results/w2sd.json --table

Held-out prompts, one seed each, judged by code from the pixels: shirt, direction, number of puppets, and all three.
Arms have 12 or 24 evaluations, counted by a hook that sees them. Each reflection stands beside its control, the
plain run of which it is a copy but for the square of the step: more guidance for two guidance strengths, the LoRA at
the difference of the strengths for a LoRA. Motion is the mean change from frame to frame, in 1/255. Every prompt goes
through all arms of a number before the next, and is written at once; a later run goes on where one ended.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from interspatial.models import host
from interspatial.models.guidance import CfgRoles, LoraRoles, Reflection
from interspatial.models.puppet import judge, scene
from interspatial.models.report import Card
from interspatial.models.schedule import StepWindow

import nodes

from ..inprocess import conditioning, decode, empty_latent, video_model
from ..prompt_following import right, wanted

LORA = "tiny_puppet_t2v_guided.safetensors"
HALF, LESS = StepWindow(0.0, 0.5), StepWindow(0.0, 0.45)  # of 6 steps, 4 and 3 lie inside


@dataclass(frozen=True)
class Arm:
    """lora: strength on the run itself    roles: what is reflected, None for a plain run"""

    name: str
    steps: int
    cfg: float
    lora: float = 0.0
    roles: object = None
    window: StepWindow = HALF


def arms() -> dict[int, list[Arm]]:
    """By their number of evaluations."""
    weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", LORA), safe_load=True)
    pair = LoraRoles(LORA, weights, 0.5, -0.5)
    alike = [
        Arm("plain, cfg 4", 6, 4.0),
        Arm("plain, cfg 7 (control)", 6, 7.0),
        Arm("reflect, cfg 4 / 1", 3, 4.0, roles=CfgRoles(0.0, 1.0)),
        Arm("plain, cfg 1", 12, 1.0),
        Arm("plain, cfg 1, LoRA 0.5", 12, 1.0, 0.5),
        Arm("plain, cfg 1, LoRA 1 (control)", 12, 1.0, 1.0),
        Arm("reflect, cfg 1, LoRA 0.5 / -0.5", 6, 1.0, roles=pair, window=LESS),
    ]
    longer = [
        Arm("plain, cfg 4, 12 steps", 12, 4.0),
        Arm("plain, cfg 7, 12 steps (control)", 12, 7.0),
        Arm("reflect, cfg 4 / 1, 6 steps", 6, 4.0, roles=CfgRoles(0.0, 1.0)),
    ]
    return {12: alike, 24: longer}


class Evaluations:
    """A step method that counts what the model is asked, prompt by prompt."""

    def __init__(self) -> None:
        self.count = 0

    def why_not(self, step) -> str:
        self.count += len(step.forward.branches)
        return "only counts"


def clip_of(arm: Arm, prompt: str, seed: int, counted: Evaluations) -> torch.Tensor:
    """returns: [F, H, W, 3] 0..1"""
    model = video_model("t2v")
    if arm.lora:
        model = nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, arm.lora)[0]
    model = host.attach_step(model, Card("evaluations", "measure"), counted)
    sampler = comfy.samplers.sampler_object("euler")
    if arm.roles is not None:
        sampler = host.reflecting_sampler(sampler, arm.roles, Reflection(arm.window))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", arm.steps)
    latent = empty_latent()
    out = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(latent, seed), arm.cfg, sampler, sigmas, conditioning(prompt),
        conditioning(""), latent, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return decode(out)


def measure(arm: Arm, i: int, prompt: scene.Prompt) -> dict:
    """One clip: what it was judged, [shirt, direction, count] as 0 or 1, and what it took."""
    counted = Evaluations()
    clip = clip_of(arm, prompt.caption(), i, counted)
    return {"right": [int(v) for v in right(judge.judge(clip), wanted(prompt))], "evaluations": counted.count,
            "motion": round(float((clip[1:] - clip[:-1]).abs().mean()) * 255, 3)}  # fmt: skip


def shares(clips: dict[str, dict]) -> dict[str, float]:
    """Percent of the clips that got each property right, and all three; means of the rest."""
    judged = torch.tensor([clip["right"] for clip in clips.values()], dtype=torch.float32)
    found = dict(zip(("shirt", "direction", "count"), (100 * judged.mean(0)).tolist(), strict=True))
    means = {name: sum(clip[name] for clip in clips.values()) / len(clips) for name in ("evaluations", "motion")}
    return {**found, "all": 100 * float(judged.prod(1).mean()), **means}


def table(rows: dict[str, dict]) -> str:
    """Of the prompts that all arms of one number of evaluations have been through."""
    columns, lines = ("evaluations", "shirt", "direction", "count", "all", "motion"), []
    for group in arms().values():
        found = {arm.name: rows[arm.name] for arm in group if arm.name in rows}
        common = set.intersection(*(set(clips) for clips in found.values())) if found else set()
        if not common:
            continue
        lines += [f"\n{len(common)} prompts\n", "| arm | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * 6]
        for name, clips in found.items():
            row = shares({i: clips[i] for i in common})
            lines.append(f"| {name} | " + " | ".join(f"{row[c]:.{2 if c == 'motion' else 0}f}" for c in columns) + " |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    content = json.loads(args.json.read_text()) if args.json.exists() else {"method": __doc__, "rows": {}}
    rows = content["rows"]
    if args.table:
        print(table(rows))
        return
    content["torch"] = torch.__version__
    for group in arms().values():
        for i, prompt in enumerate(scene.split_prompts()[1][: args.count]):
            for arm in group:
                if str(i) not in rows.setdefault(arm.name, {}):
                    rows[arm.name][str(i)] = measure(arm, i, prompt)
            args.json.write_text(json.dumps(content) + "\n")
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
