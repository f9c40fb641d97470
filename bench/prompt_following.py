"""Does the tiny model do what the prompt says? 60 held-out prompts, one seed each, judged by code from the pixels.

    python -m bench.prompt_following t2v [--cfg 4] [--count 60]
    python -m bench.prompt_following i2v

First the judge itself is checked on ground-truth renders of the same prompts. Image to video gets the first frame of a
ground-truth render and is judged on direction, and on how well that frame is kept.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import torch
from interspatial.models.puppet import judge, scene, world

from .inprocess import FPS, LENGTH, SIZE, Settings, image_to_video, psnr, text_to_video

OUT = Path(__file__).parent / "out"


def wanted(prompt: scene.Prompt) -> judge.Verdict:
    return judge.Verdict(prompt.count, prompt.shirt, prompt.action if prompt.action in ("left", "right") else "place")


def right(found: judge.Verdict, goal: judge.Verdict) -> torch.Tensor:
    """returns: [3] 0 or 1: shirt, direction, count"""
    return torch.tensor(
        [found.shirt == goal.shirt, found.direction == goal.direction, found.count == goal.count], dtype=torch.float32
    )


def report(name: str, scores: list[torch.Tensor]) -> None:
    shirt, direction, count = (100 * torch.stack(scores).mean(0)).tolist()
    print(f"{name}: shirt {shirt:.1f} %, direction {direction:.1f} %, count {count:.1f} % of {len(scores)}", flush=True)


def truth(prompt: scene.Prompt, i: int) -> torch.Tensor:
    return world.pose_scene(prompt.scene(random.Random(f"judge-{i}")), LENGTH, SIZE, SIZE, FPS).rgb


def sheet(clips: list[torch.Tensor], path: Path) -> None:
    """First, middle and last frame of each clip, ten clips a column."""
    from PIL import Image

    rows = [torch.cat([c[0], c[len(c) // 2], c[-1]], 1) for c in clips]
    columns = [torch.cat(rows[i : i + 10], 0) for i in range(0, len(rows) // 10 * 10, 10)] or [torch.cat(rows, 0)]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((torch.cat(columns, 1).clamp(0, 1) * 255).byte().numpy()).save(path)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("t2v", "i2v"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--cfg", type=float, default=Settings.cfg)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    args = parser.parse_args()
    prompts = scene.split_prompts()[1][: args.count]
    report("judge on ground truth", [right(judge.judge(truth(p, i)), wanted(p)) for i, p in enumerate(prompts)])
    settings = Settings(steps=args.steps, cfg=args.cfg)
    scores, kept, clips = [], [], []
    for i, prompt in enumerate(prompts):
        each = replace(settings, seed=i)
        if args.kind == "t2v":
            clip = text_to_video(prompt.caption(), each)
        else:
            first = truth(prompt, i)[:1]
            clip = image_to_video(prompt.caption(), first, each)
            kept.append(psnr(clip[:1], first))
        clips.append(clip)
        scores.append(right(judge.judge(clip), wanted(prompt)))
        if (i + 1) % 10 == 0:
            report(f"{args.kind} after {i + 1}", scores)
    sheet(clips, OUT / f"{args.kind}.png")
    if kept:
        print(f"first frame kept at {sum(kept) / len(kept):.2f} dB mean, {min(kept):.2f} worst")


if __name__ == "__main__":
    main()
