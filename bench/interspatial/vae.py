"""PSNR of the video VAEs on held-out clips of fast motion, by place in the window, and how Gaussian latents are.

    python -m bench.interspatial.vae      # writes bench/results/interspatial_vae.json and .md

Held out: 24 general scenes and 24 scenes of body and camera control, from seeds that training never drew, 17 frames of
128x128 at 8 frames per second: twice the motion from frame to frame of the clips at 16. Both arms of
`training.video_vae` as they are in training/runs, and the tiny Wan VAE, which was trained at 16 frames per second and
without scenes of control, through core's own VAE object. float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from interspatial.models.puppet import control_scenes, scene, world
from torch import Tensor

from bench.inprocess import vae as tiny_wan
from bench.results_file import Results
from training.package import ROOT
from training.video_vae import ARMS, load, normalised

CLIPS, FRAMES, SIDE, FPS = 24, 17, 128, 8.0
FIRST_SEED = (1 << 30) + 1000  # training draws below 2^30; bench.vae_quality has the seeds from 2^30 on
SETS = ("general", "control")
PLACES = ("first frame", "1st of 4", "2nd of 4", "3rd of 4", "4th of 4")
OUT = ROOT / "bench" / "results" / "interspatial_vae.json"

Coder = Callable[[Tensor], tuple[Tensor, Tensor]]  # a clip [T, H, W, 3] to its latent [1, 16, L, h, w] and back


def clips(of: str) -> list[Tensor]:
    """[T, H, W, 3] each. of: one of SETS"""
    if of == "general":
        specs = [scene.random_scene(FIRST_SEED + i) for i in range(CLIPS)]
    else:
        kinds = [control_scenes.kind_of(i) for i in range(CLIPS)]
        specs = [control_scenes.control_scene(k, control_scenes.HELD_OUT + i) for i, k in enumerate(kinds)]
    return [world.pose_scene(spec, FRAMES, SIDE, SIDE, FPS).rgb for spec in specs]


def arm(name: str) -> tuple[Coder, dict]:
    """An arm of the training, and how long it has been trained."""
    vae, saved = load(name)
    normalised(vae)

    def coder(clip: Tensor) -> tuple[Tensor, Tensor]:
        latent = vae.encode(clip.movedim(-1, 0)[None] * 2 - 1)
        return latent, vae.decode(latent)[0].movedim(0, -1) / 2 + 0.5

    return coder, {"steps": saved["step"], "seconds": round(saved["seconds"])}


def wan() -> tuple[Coder, dict]:
    from comfy.latent_formats import Wan21

    def coder(clip: Tensor) -> tuple[Tensor, Tensor]:
        latent = tiny_wan().encode(clip)
        return Wan21().process_in(latent), tiny_wan().decode(latent)[0].float()

    return coder, {"steps": 2800, "seconds": 2269}


def decibels(error: Tensor) -> float:
    return float(-10 * error.log10())


def measure(coder: Coder, given: list[Tensor]) -> dict:
    """The row of one VAE. Kurtosis: fourth moment over squared variance, less 3; 0 for a Gaussian."""
    errors, latents = [], []
    for clip in given:
        latent, back = coder(clip)
        errors.append((back.clamp(0, 1) - clip).square().mean((1, 2, 3)))
        latents.append(latent.movedim(1, 0).flatten(1))
    error, z = torch.stack(errors), torch.cat(latents, 1).double()
    places = [error[:, 0], *(error[:, 1 + k :: 4] for k in range(4))]
    centred = z - z.mean(1, keepdim=True)
    kurtosis = centred.pow(4).mean(1) / centred.square().mean(1).square() - 3
    by_place = [decibels(e.mean()) for e in places]
    return {
        "psnr": sum(decibels(e) for e in error.mean(1)) / len(error), "psnr_worst": decibels(error.mean(1).max()),
        "psnr_by_place": by_place, "spread_in_window": max(by_place[1:]) - min(by_place[1:]),
        "latent_std": z.std(1).tolist(), "latent_mean": z.mean(1).tolist(),
        "kurtosis": kurtosis.tolist(), "kurtosis_mean_abs": float(kurtosis.abs().mean()),
    }  # fmt: skip


def table(rows: dict) -> str:
    """The results as a page."""
    head = ["VAE, scenes", "PSNR, dB", "worst", *PLACES, "spread in the window, dB", "kurtosis, mean of absolutes",
            "steps", "CPU seconds"]  # fmt: skip
    about = "PSNR: mean over clips; by place: from the mean squared error there. Kurtosis: 0 for a Gaussian."
    lines = ["# Video VAEs on fast motion", "", __doc__.strip().split("\n\n")[-1], "", about, "",
             f"| {' | '.join(head)} |", "| --- |" + " --- |" * (len(head) - 1)]  # fmt: skip
    for name, r in rows.items():
        numbers = [r["psnr"], r["psnr_worst"], *r["psnr_by_place"], r["spread_in_window"], r["kurtosis_mean_abs"]]
        lines.append(f"| {name} | {' | '.join(f'{n:.2f}' for n in numbers)} | {r['steps']} | {r['seconds']} |")
    return "\n".join(lines) + "\n"


@torch.inference_mode()
def main() -> None:
    results = Results(OUT, __doc__.strip().split("\n\n")[-1], clips=CLIPS, frames=FRAMES, side=SIDE, fps=FPS,
                      first_seed=FIRST_SEED)  # fmt: skip
    for of in SETS:
        given = clips(of)
        for name, (coder, made) in {**{f"tiny, {a}": arm(a) for a in ARMS}, "tiny Wan": wan()}.items():
            if results.rows.get(f"{name}, {of}", {}).get("steps") != made["steps"]:  # else measured already
                results.put(f"{name}, {of}", {**measure(coder, given), **made})
    OUT.with_suffix(".md").write_text(table(results.rows))


if __name__ == "__main__":
    sys.exit(main())
