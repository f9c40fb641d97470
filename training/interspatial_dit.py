"""Trains the tiny interspatial model on Puppet World: bodies, a camera, a reference picture, sometimes a background.

    python -m training.control_clips scenes 1000
    python -m training.interspatial_dit --encode       # clips, backgrounds and references as latents
    python -m training.interspatial_dit                # resumes; writes the checkpoint and its card

The latents are those of our own video VAE, in its normalised space. Reference pictures are rendered at twice the clips'
resolution: a point then lies in a latent cell of its own limb. Body and reference are left out of one clip in ten, for
guidance, and the background is given in half of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .package import CHECKPOINTS, RUNS, prepare

prepare(comfy=False)
from interspatial.models.control.from_world import body_of_world, camera_of_world  # noqa: E402
from interspatial.models.control.rays import folded, pluecker  # noqa: E402
from interspatial.models.control.tokens import body_tokens, identity_features  # noqa: E402
from interspatial.models.nets.dit_config import CONFIGS  # noqa: E402
from interspatial.models.nets.interspatial_dit import InterspatialDiT  # noqa: E402
from interspatial.models.nets.point_tokens import Points  # noqa: E402
from interspatial.models.nets.video_vae import VideoVAE, VideoVAEConfig  # noqa: E402
from interspatial.models.puppet.control_scenes import control_scene, kind_of, reference_scene  # noqa: E402
from interspatial.models.puppet.world import pose_scene  # noqa: E402

from . import control_clips as clips  # noqa: E402
from .card import save_checkpoint  # noqa: E402
from .flow import SHIFT, Learner, averaged, clip_loss, noise_levels, noised  # noqa: E402
from .state import save  # noqa: E402

NAME, VAE = "interspatial_tiny", "interspatial_tiny_vae"
CONFIG = CONFIGS["tiny"]
FOLDER = RUNS / "interspatial_dit"
SIZE = clips.SIZES["scenes"]
REFERENCE, STRIDE = 256, 4
AT_A_TIME = 48  # points a person
BATCH, STEPS, DROPPED, WITH_BACKGROUND = 4, 4000, 0.1, 0.5


def vae() -> VideoVAE:
    """The shipped VAE."""
    path = CHECKPOINTS / "vae" / f"{VAE}.safetensors"
    with safe_open(path, "pt") as file:
        model = VideoVAE(VideoVAEConfig.from_json(file.metadata()["config"]))
    model.load_state_dict({name: x.float() for name, x in load_file(path).items()})
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def encoded(model: VideoVAE, pictures: Tensor) -> Tensor:
    """[B, T, H, W, 3] bytes -> [B, 16, F, h, w] half"""
    return model.encode(pictures.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).half()


def encode_shard(model: VideoVAE, index: int) -> None:
    path = FOLDER / f"latents-{index:03d}.pt"
    if path.exists():
        return
    shard = torch.load(clips.FOLDER / f"scenes-{index:03d}.pt", weights_only=True)
    found = []
    for i in range(len(shard["rgb"])):
        seed = index * clips.SHARD + i
        found.append(scene_tensors(model, shard, i, control_scene(kind_of(seed), seed)))
    save(clips.stacked(found), path)
    print(path.name, flush=True)


def scene_tensors(model: VideoVAE, shard: dict[str, Tensor], i: int, spec) -> dict[str, Tensor]:
    """What the model is given and has to give for one clip."""
    shown = pose_scene(reference_scene(spec), 1, REFERENCE, REFERENCE, 1.0)
    both = encoded(model, torch.stack([shard["rgb"][i], shard["background"][i]]))
    reference = encoded(model, clips.eight_bits(shown.rgb)[None])[0, :, 0]
    body, camera = clips.body_and_camera(shard, i, SIZE.side, SIZE.fps)
    tokens = body_tokens(body, camera, STRIDE, CONFIG.depth_mode)
    seen = identity_features(reference.float(), body_of_world(shown, SIZE.points), camera_of_world(shown))
    identity = torch.cat([seen, seen.new_zeros(len(tokens.person) - len(seen), seen.shape[1])])
    grid = both.shape[-1] // CONFIG.patch
    rays = folded(pluecker(camera, grid, grid), both.shape[2], STRIDE)
    return {"video": both[0], "background": both[1], "reference": reference, "rays": rays.transpose(0, 1).half(),
            "place": tokens.place, "usable": tokens.usable, "content": tokens.content, "person": tokens.person,
            "part": tokens.part, "identity": identity.half()}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Tensors of N clips by name, as `scene_tensors` makes them."""

    x: dict[str, Tensor]

    @staticmethod
    def load() -> Data:
        shards = [torch.load(path, weights_only=True) for path in sorted(FOLDER.glob("latents-???.pt"))]
        return Data({name: torch.cat([shard[name] for shard in shards]) for name in shards[0]})

    def batch(self, pick: Tensor, shown: Tensor, behind: Tensor, generator: torch.Generator) -> tuple[Tensor, dict]:
        """shown: [B] whether body and reference are given    behind: [B] whether the background is

        Half of the points are taken, others in each batch: it is faster, and the model learns that any will do.
        """
        x = {name: value[pick] for name, value in self.x.items()}
        some = torch.cat([torch.randperm(SIZE.points, generator=generator)[:AT_A_TIME] + SIZE.points * i
                          for i in range(clips.PEOPLE)])  # fmt: skip
        for name, axis in (("place", 2), ("usable", 2), ("content", 2), ("person", 1), ("part", 1), ("identity", 1)):
            x[name] = x[name].index_select(axis, some)
        points = Points(x["place"], x["usable"] & shown[:, None, None], x["content"], x["person"], x["part"],
                        x["identity"].float() * shown[:, None, None])  # fmt: skip
        given = behind.view(-1, 1, 1, 1, 1).float()
        background = x["background"].float() * given
        extra = torch.cat([background, given.expand_as(background[:, :1])], 1)
        reference = x["reference"].float() * shown.view(-1, 1, 1, 1)
        return x["video"].float(), {"points": points, "rays": x["rays"].float(), "reference": reference, "extra": extra}


def train(minutes: float, steps: int) -> None:
    torch.manual_seed(0)
    model = InterspatialDiT(CONFIG)
    model.start()
    learner = Learner(model, FOLDER, steps, rate=1.5e-3, keep=0.999)
    data = Data.load()
    count = len(data.x["video"])
    generator = torch.Generator().manual_seed(learner.step)

    def loss(step: int) -> Tensor:
        pick = torch.randint(count, (BATCH,), generator=generator)
        chance = torch.rand(2, BATCH, generator=generator)
        video, given = data.batch(pick, chance[0] >= DROPPED, chance[1] < WITH_BACKGROUND, generator)
        sigma, noise = noise_levels(BATCH, generator), torch.randn(video.shape, generator=generator)
        out = model(noised(video, sigma, noise), sigma * 1000, **given)
        return clip_loss(out, video, noise, sigma)

    learner.run(loss, minutes)


def export(note: str) -> None:
    saved = torch.load(FOLDER / "state.pt", weights_only=True)
    model = averaged(InterspatialDiT(CONFIG), FOLDER)
    count = len(Data.load().x["video"])
    save_checkpoint(model.state_dict(), CHECKPOINTS / "diffusion_models" / f"{NAME}.safetensors", torch.float16, {
        "what": f"Interspatial diffusion transformer, {CONFIG.told()}",
        "data": f"{count} Puppet World clips of one or two people in suits of six colours, {SIZE.frames} frames of "
                f"{SIZE.side}x{SIZE.side} at {SIZE.fps:g} fps, crossings and orbits among them; {SIZE.points} points a "
                f"person; latents of {VAE}; reference pictures of {REFERENCE}x{REFERENCE}",
        "loss": f"squared error of the clean clip, noise levels with shift 3.0; "
                f"body and reference dropped in {DROPPED:.0%}, background given in "
                f"{WITH_BACKGROUND:.0%} of the clips; weights averaged with 0.999",
        "steps": saved["step"], "batch": BATCH, "seconds": round(saved["seconds"]), "device": "1 CPU core", "seed": 0,
        "note": note,
    }, {"config": json.dumps({"interspatial": CONFIG.told(), "latent": "unit", "shift": SHIFT})})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encode", action="store_true")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--note", default="", help="what else the card should say about how it was made")
    args = parser.parse_args()
    if args.encode:
        FOLDER.mkdir(parents=True, exist_ok=True)
        model = vae()
        for index in range(len(list(clips.FOLDER.glob("scenes-???.pt")))):
            encode_shard(model, index)
    else:
        if not args.export:
            train(args.minutes, args.steps)
        export(args.note)
