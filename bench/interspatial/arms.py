"""What interspatial control owes to which of its parts: every arm of training.interspatial_arms on held-out clips.

    python -m bench.interspatial.arms              # trained arms that have no row yet

Clips of 3 frames of 32x32, 64 of one person and 64 of two who cover each other, with the background given; 20 steps of
Euler, shift 3, no guidance, one seed for all arms. Read by colour against the truth (models/measure/pose_following.py).
val: flow loss on the same clips at four noise levels from 0.4 to 1, fixed noise.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from training.package import prepare

prepare(comfy=False)
from interspatial.models.measure.pose_following import follow  # noqa: E402
from interspatial.models.puppet.control_scenes import HELD_OUT, control_scene  # noqa: E402
from interspatial.models.puppet.world import pose_scene  # noqa: E402

from training import control_clips as clips  # noqa: E402
from training.flow import SHIFT, averaged, noised  # noqa: E402
from training.interspatial_arms import ARMS, FOLDER, PLAN, Arm, Conditions, build, used_parameters  # noqa: E402
from training.interspatial_arms import STEPS as TRAINED  # noqa: E402

from ..results_file import Results  # noqa: E402

OUT = Path(__file__).parent.parent / "results" / "interspatial_arms.json"
COUNT, STEPS, CHUNK = 64, 20, 16
LEVELS = (0.4, 0.6, 0.8, 1.0)


def sampled(model, arm: Arm, data: Conditions, pick: Tensor, seed: int) -> Tensor:
    """Euler from noise. returns: [B, 3, T, H, W] in -1..1"""
    u = torch.linspace(1, 0, STEPS + 1)
    sigmas = SHIFT * u / (1 + (SHIFT - 1) * u)
    x = torch.randn(data.video[pick].shape, generator=torch.Generator().manual_seed(seed))
    given = data.kwargs(arm, pick, torch.ones(len(pick)))
    for now, then in pairwise(sigmas):
        x = x + (then - now) * model(x, now.expand(len(pick)) * 1000, **given)
    return x


def validation(model, arm: Arm, data: Conditions) -> float:
    losses = []
    for pick in torch.arange(len(data.video)).split(CHUNK):
        for level in LEVELS:
            noise = torch.randn(data.video[pick].shape, generator=torch.Generator().manual_seed(int(pick[0])))
            x = noised(data.video[pick], torch.full((len(pick),), level), noise)
            out = model(x, torch.full((len(pick),), 1000 * level), **data.kwargs(arm, pick, torch.ones(len(pick))))
            losses.append((out - (noise - data.video[pick])).square().mean().item())
    return sum(losses) / len(losses)


def judged(model, arm: Arm, scene: str) -> dict[str, float]:
    """Mean figures over the held-out clips of one kind of scene."""
    data = Conditions.of(clips.held_out("pixels", scene, COUNT), arm.config.depth_mode)
    size, rows = clips.SIZES["pixels"], []
    for pick in torch.arange(COUNT).split(CHUNK):
        out = sampled(model, arm, data, pick, 1000 + int(pick[0]))
        for i, video in zip(pick.tolist(), out, strict=True):
            world = pose_scene(control_scene(scene, HELD_OUT + i), size.frames, size.side, size.side, size.fps)
            clip = (video.permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1)
            score = follow(clip, world, token=arm.config.patch)
            psnr = -10 * (clip - world.rgb).square().mean().log10().item()
            rows.append([score.part_error, score.joint_error, score.part_recall, score.silhouette_iou,
                         score.right_person, score.overlap_recall, psnr])  # fmt: skip
    means = torch.tensor(rows).nanmean(0).tolist()
    names = ("part_error", "joint_error", "recall", "iou", "right_person", "overlap_recall", "psnr")
    return {f"{scene}_{name}": value for name, value in zip(names, means, strict=True)} | {
        f"{scene}_val": validation(model, arm, data)}  # fmt: skip


COLUMNS = {"single_part_error": "part error, one person, px", "single_recall": "recall",
           "single_iou": "outline", "single_psnr": "PSNR, dB", "cross_part_error": "part error, two crossing, px",
           "cross_recall": "recall", "cross_overlap_recall": "recall where they overlap",
           "cross_right_person": "right person", "cross_val": "flow loss"}  # fmt: skip


def write_table(rows: dict[str, dict]) -> None:
    """The mean over seeds of each arm, with the seeds' own figures behind it where there are several."""
    lines = [__doc__.strip(), "", "| arm | seeds | " + " | ".join(COLUMNS.values()) + " |",
             "| --- " * (len(COLUMNS) + 2) + "|"]  # fmt: skip
    for name, arm in ARMS.items():
        found = [row for key, row in rows.items() if key.split()[0] == name]
        if found:
            cells = []
            for column in COLUMNS:
                each = [row[column] for row in found]
                told = f"{sum(each) / len(each):.3g}"
                cells.append(told + (f" ({', '.join(f'{x:.3g}' for x in each)})" if len(each) > 1 else ""))
            lines.append(f"| {arm.what} | {len(found)} | " + " | ".join(cells) + " |")
    OUT.with_suffix(".md").write_text("\n".join(lines) + "\n")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="judge arms anew that have a row")
    again = parser.parse_args().again
    results = Results(OUT, __doc__)
    for name, seed in PLAN:
        folder, row = FOLDER / f"{name}-{seed}", f"{name} {seed}"
        if not (folder / "state.pt").exists() or (row in results.rows and not again):
            continue
        arm = ARMS[name]
        step = torch.load(folder / "state.pt", weights_only=True)["step"]
        if step < TRAINED:
            continue
        model = averaged(build(arm), folder)
        results.put(row, {"what": arm.what, "parameters": used_parameters(model, arm.given), "steps": step,
                          **judged(model, arm, "single"), **judged(model, arm, "cross")})  # fmt: skip
    write_table(results.rows)


if __name__ == "__main__":
    main()
