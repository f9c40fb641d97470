"""How well the tiny interspatial model shows what it is told, on scenes that it has not seen.

    python -m bench.interspatial.model --scenes 16

Sampled through ComfyUI's KSampler, 20 steps of Euler, cfg 1 unless said, one seed a scene, decoded by our own VAE, and
scored against the rendered truth (models/measure/pose_following.py). Rows: the truth through the VAE (what the VAE lets
through); a camera that holds, one that moves, one from a height that training never had, a background that is given;
two people crossing, also with depth zeroed in the places of their points; without a reference; without bodies; and
crossings with sparse attention, a step cache, 8-bit weights and context windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from interspatial.models.control.from_world import body_of_world, camera_of_world
from interspatial.models.host.quant_loading import load_quantised_model
from interspatial.models.host.quant_trial import coded_layers, float_weight, linear_layers
from interspatial.models.host.video_vae import load_video_vae
from interspatial.models.measure.metrics import ssim
from interspatial.models.measure.pose_following import follow
from interspatial.models.puppet.control_scenes import HELD_OUT, control_scene, reference_scene
from interspatial.models.puppet.subset import empty
from interspatial.models.puppet.world import World, pose_scene
from interspatial.models.quant.format import FORMATS
from interspatial.nodes.interspatial_model import InterspatialScene

from training.control_clips import SIZES
from training.interspatial_dit import NAME, REFERENCE, VAE
from training.package import CHECKPOINTS

from ..inprocess import Settings, psnr, sample
from ..results_file import Results
from .together import cached, mean, sparse, windowed

OUT = Path(__file__).parent.parent / "results" / "interspatial_model.json"
SIZE = SIZES["scenes"]
FILE = CHECKPOINTS / "diffusion_models" / f"{NAME}.safetensors"


def worlds(kind: str, count: int, unseen: bool = False) -> list[World]:
    specs = [control_scene(kind, HELD_OUT + seed, unseen) for seed in range(count)]
    return [pose_scene(spec, SIZE.frames, SIZE.side, SIZE.side, SIZE.fps) for spec in specs]


def conditions(world: World, vae, background: bool, reference: bool) -> tuple:
    """Positive, negative and an empty latent, as the node makes them."""
    shown = pose_scene(reference_scene(world.spec), 1, REFERENCE, REFERENCE, 1.0)
    more = {}
    if reference:
        more = {"reference": {"samples": vae.encode(shown.rgb)}, "reference_camera": camera_of_world(shown),
                "reference_body": body_of_world(shown, SIZE.points)}  # fmt: skip
    if background:
        more["background"] = {"samples": vae.encode(empty(world).rgb)}
    body = body_of_world(world, SIZE.points)
    return InterspatialScene.execute(body, camera_of_world(world), SIZE.frames, SIZE.side, SIZE.side, **more).args


def clip(model, vae, world: World, seed: int, background=False, reference=True, cfg=1.0) -> torch.Tensor:
    positive, negative, latent = conditions(world, vae, background, reference)
    return vae.decode(sample(model, positive, negative, latent["samples"], Settings(cfg=cfg, seed=seed)))[0].float()


def judged(found: list[tuple[torch.Tensor, World]]) -> dict[str, float]:
    scores = [follow(made.clamp(0, 1), world, token=16) for made, world in found]

    overlap = sum(int(s.overlap.sum()) for s in scores)
    right = sum(float((s.right * s.overlap).nansum()) for s in scores)
    return {
        "psnr": mean(psnr(w.rgb, c) for c, w in found), "ssim": mean(float(ssim(w.rgb, c).mean()) for c, w in found),
        "part_error": mean(s.part_error for s in scores), "joint_error": mean(s.joint_error for s in scores),
        "recall": mean(s.part_recall for s in scores), "iou": mean(s.silhouette_iou for s in scores),
        "right_person": right / overlap if overlap else float("nan"),
        "overlap_recall": mean(s.overlap_recall for s in scores), "clips": len(scores),
    }  # fmt: skip


def without_depth(model):
    """The model with the depth of all places set to the plane of the pixels."""
    import comfy.conds

    made = model.clone()
    plain = made.model.extra_conds

    def flat(**kwargs):
        out = plain(**kwargs)
        if "body_place" in out:
            place = out["body_place"].cond.clone()
            place[..., 2] = 0  # the bits of 0.0
            out["body_place"] = comfy.conds.CONDRegular(place)
        return out

    made.add_object_patch("extra_conds", flat)
    return made


def in_few_bits(model, bits: int, make: Callable[[], list]) -> list:
    network, form = model.model.diffusion_model, replace(FORMATS["vidit_q"])
    layers = {name: float_weight(layer, torch.device("cpu")) for name, layer in linear_layers(network).items()}
    coded = {name: form.encode(w, bits) for name, w in layers.items() if not form.why_not(tuple(w.shape), bits)}
    with coded_layers(network, coded, 8):
        return make()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--together", type=int, default=8, help="scenes of the rows with other patches")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    args = parser.parse_args()
    results = Results(OUT, __doc__)
    model, vae = load_quantised_model(str(FILE)), load_video_vae(f"{VAE}.safetensors")

    def run(kind: str, count: int = args.scenes, unseen=False, patched=model, **given) -> list:
        found = worlds(kind, count, unseen)
        return [(clip(patched, vae, world, i, **given), world) for i, world in enumerate(found)]

    def through(kind: str) -> list:
        return [(vae.decode(vae.encode(world.rgb))[0].float(), world) for world in worlds(kind, args.scenes)]

    few = args.together
    rows = {
        "truth through the VAE: single": lambda: through("single"),
        "truth through the VAE: cross": lambda: through("cross"),
        "single": lambda: run("single"), "cross": lambda: run("cross"), "orbit": lambda: run("orbit"),
        "orbit from an unseen height": lambda: run("orbit", unseen=True),
        "single, background given": lambda: run("single", background=True),
        "cross, background given": lambda: run("cross", background=True),
        "orbit, background given": lambda: run("orbit", background=True),
        "orbit from an unseen height, background given": lambda: run("orbit", unseen=True, background=True),
        "cross, depth zeroed, background given": lambda: run("cross", patched=without_depth(model), background=True),
        "cross, no reference, background given": lambda: run("cross", background=True, reference=False),
        "cross, cfg 2, background given": lambda: run("cross", background=True, cfg=2.0),
        "few: cross, background given": lambda: run("cross", few, background=True),
        "few: + sparse, draft 0.5": lambda: run("cross", few, patched=sparse(model, 0.5), background=True),
        "few: + step cache": lambda: run("cross", few, patched=cached(model), background=True),
        "few: + windows of 3 latent frames": lambda: run("cross", few, patched=windowed(model), background=True),
        "few: + 8-bit weights": lambda: in_few_bits(model, 8, lambda: run("cross", few, background=True)),
        "few: + 4-bit weights": lambda: in_few_bits(model, 4, lambda: run("cross", few, background=True)),
    }  # fmt: skip
    for name, make in rows.items():
        if args.only in name and name not in results.rows:
            results.put(name, judged(make()))


if __name__ == "__main__":
    main()
