"""Trains an interspatial adapter on the tiny text-to-video model, which stays as it is.

    python -m training.clips prompts 800 && python -m training.latents --shards 8
    python -m training.interspatial_adapter              # resumes; writes the checkpoint and its card
    python -m training.interspatial_adapter --joint      # the control: the model learns too; not exported

Clips are those of the prompt language. Their bodies are known: the scenes are posed again, not rendered. The body is
left out of one clip in ten, for guidance.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .package import CHECKPOINTS, RUNS, prepare

prepare()
from interspatial.models.block_visits import visiting_blocks  # noqa: E402
from interspatial.models.control.from_world import body_of_world, camera_of_world  # noqa: E402
from interspatial.models.control.tokens import body_tokens  # noqa: E402
from interspatial.models.families import family_of  # noqa: E402
from interspatial.models.nets.interspatial_adapter import AdapterConfig, InterspatialAdapter  # noqa: E402
from interspatial.models.nets.point_tokens import Points  # noqa: E402
from interspatial.models.puppet.world import pose_scene  # noqa: E402

from . import clips, latents, lora  # noqa: E402
from .card import save_checkpoint  # noqa: E402
from .flow import Learner, averaged, clip_loss, noise_levels, noised  # noqa: E402
from .state import save  # noqa: E402

NAME = "interspatial_tiny_puppet_t2v"
CONFIG = AdapterConfig(family="wan", host_width=256, layers=(0, 2, 4), width=96, heads=4)
POINTS, PEOPLE = 48, 3  # points a person: two or more on each limb
BATCH, STEPS, DROPPED, DROPPED_TEXT = 4, 700, 0.1, 0.1
GRID = (8, 8)


@dataclass(frozen=True)
class Data:
    """video: [N, 16, F, h, w] latents    points: of N clips"""

    video: Tensor
    captions: list[str]
    points: Points

    @staticmethod
    def load() -> Data:
        video, _, captions = latents.load()
        path = RUNS / "control" / f"prompts-{POINTS}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shards = len(list(latents.FOLDER.glob("prompts-???.pt")))
            found = [points_of(spec) for shard in range(shards) for spec in clips.specs("prompts", shard)]
            save({name: torch.stack([p[name] for p in found]) for name in found[0]}, path)
        return Data(video, captions, Points(**torch.load(path, weights_only=True)))


def points_of(spec, frames: int = clips.FRAMES, side: int = clips.SIZE) -> dict[str, Tensor]:
    """The body tokens of a scene; places of people who are not there are not usable."""
    world = pose_scene(spec, frames, side, side, clips.FPS)
    tokens = body_tokens(body_of_world(world, POINTS), camera_of_world(world), CONFIG.temporal_stride)
    missing = (PEOPLE - len(spec.puppets)) * POINTS
    found = {}
    for name, axis in (("place", 1), ("usable", 1), ("content", 1), ("person", 0), ("part", 0)):
        x = getattr(tokens, name)
        empty = x.new_zeros(*x.shape[:axis], missing, *x.shape[axis + 1 :])
        found[name] = torch.cat([x, empty], axis)
    return found


class Controlled(nn.Module):
    """The host and its adapter, as one forward."""

    def __init__(self, joint: bool):
        super().__init__()
        self.host = lora.base().requires_grad_(joint)
        self.adapter = InterspatialAdapter(CONFIG)
        self.adapter.start()

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, points: Points) -> Tensor:
        fixed = self.adapter.fixed(points, *GRID)
        numbers, y = torch.arange(x.shape[2]), fixed.y

        def visit(index: int, streams: tuple, run) -> tuple:
            nonlocal y
            (tokens,) = run(*streams)
            if index not in CONFIG.layers:
                return (tokens,)
            seen, y = self.adapter.visit(index, tokens, y, timestep, fixed, numbers)
            return (tokens + seen,)

        with visiting_blocks(self.host, family_of(self.host), visit):
            return self.host(x, timestep, context)


def train(joint: bool, minutes: float, steps: int) -> None:
    torch.manual_seed(0)
    model = Controlled(joint)
    learner = Learner(model, RUNS / ("adapter_joint" if joint else "adapter"), steps, rate=1.5e-3)
    if joint:
        learner.rates = (0.005, 3e-4)  # the model has learned already; faster, it forgets its prompts
    data = Data.load()
    context = lora.contexts(data.captions)
    generator = torch.Generator().manual_seed(learner.step)

    def loss(step: int) -> Tensor:
        pick = torch.randint(len(data.video), (BATCH,), generator=generator)
        sigma, video = noise_levels(BATCH, generator), data.video[pick].float()
        noise = torch.randn(video.shape, generator=generator)
        silent = torch.rand(BATCH, generator=generator) < DROPPED_TEXT
        words = torch.cat([context["" if s else data.captions[i]] for i, s in zip(pick.tolist(), silent, strict=True)])
        p, shown = data.points, torch.rand(BATCH, generator=generator) >= DROPPED
        points = Points(p.place[pick], p.usable[pick] & shown[:, None, None], p.content[pick], p.person[pick],
                        p.part[pick])  # fmt: skip
        out = model(noised(video, sigma, noise), sigma * 1000, words, points)
        return clip_loss(out, video, noise, sigma)

    learner.run(loss, minutes)


def export(note: str) -> None:
    folder = RUNS / "adapter"
    saved = torch.load(folder / "state.pt", weights_only=True)
    model = averaged(Controlled(False), folder)
    count = len(Data.load().video)
    save_checkpoint(model.adapter.state_dict(), CHECKPOINTS / "interspatial_adapters" / f"{NAME}.safetensors",
                    torch.float16, {
        "what": f"Interspatial adapter for tiny_puppet_t2v, {CONFIG.told()}",
        "data": f"{count} Puppet World clips of the prompt language (192 training prompts), 17 frames of 128x128 at "
                f"16 fps, {POINTS} points a person",
        "loss": f"squared error of the clean clip, noise levels with shift 3.0, "
                f"body dropped in {DROPPED:.0%} and text in {DROPPED_TEXT:.0%} of the "
                "clips; the model is frozen; weights averaged with 0.998",
        "steps": saved["step"], "batch": BATCH, "seconds": round(saved["seconds"]), "device": "1 CPU core", "seed": 0,
        "note": note,
    }, {"config": json.dumps(CONFIG.told())})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--note", default="", help="what else the card should say about how it was made")
    args = parser.parse_args()
    if not args.export:
        train(args.joint, args.minutes, args.steps)
    if not args.joint:
        export(args.note)
