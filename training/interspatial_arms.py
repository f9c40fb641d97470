"""Trains the arms that tell what interspatial control owes to which of its parts, on 3 frames of 32x32 pixels.

    python -m training.control_clips pixels 4000
    python -m training.interspatial_arms rotary --seed 0         # one arm
    python -m training.interspatial_arms all                     # all of PLAN in turn; goes on after a stop

All arms are one network (models/nets/interspatial_dit.py) with 4-pixel patches on plain pixels. All know the colours of
both people's suits through the modulation, and the background in half of the clips. Arms without points get wider
feed-forward layers, so that as many parameters are used. `bench.interspatial.arms` judges them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .package import RUNS, prepare

prepare(comfy=False)
from interspatial.models.control.tokens import body_tokens, identity_features  # noqa: E402
from interspatial.models.nets.dit_config import DiTConfig  # noqa: E402
from interspatial.models.nets.interspatial_dit import InterspatialDiT  # noqa: E402
from interspatial.models.nets.point_tokens import Points  # noqa: E402

from . import control_clips as clips  # noqa: E402
from .flow import Learner, clip_loss, noise_levels, noised  # noqa: E402

FOLDER = RUNS / "arms"
BATCH, STEPS = 8, 1000
BACKGROUND = 4  # channels: a picture and whether there is one
PALETTE = 2 * 6 * 3
BASE = DiTConfig(channels=3, width=64, depth=2, heads=2, points=64, point_heads=2, patch=4, extra=BACKGROUND,
                 identity=3, reference=0, camera=False, vector=PALETTE, temporal_stride=1, predicts="clip")  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """what: for the table    config: of the network    given: "points", "map", "people" or "joints" """

    what: str
    config: DiTConfig = BASE
    given: str = "points"


ARMS = {
    "rotary": Arm("symmetric, rotary code"),
    "additive": Arm("symmetric, additive code (paper)", replace(BASE, position="additive")),
    "none": Arm("symmetric, no code", replace(BASE, position="none")),
    "one_direction": Arm("rotary, pixels ask points only", replace(BASE, symmetric=False)),
    "no_depth": Arm("rotary, depth zeroed", replace(BASE, depth_mode="none")),
    "no_identity": Arm("rotary, points without the reference's colours", replace(BASE, identity=0)),
    "no_time": Arm("rotary, points do not look over time", replace(BASE, over_time=False)),
    "part_map": Arm("2D map: zone and depth", replace(BASE, extra=BACKGROUND + 7), "map"),
    "person_map": Arm("2D map: zone of each person, and depth", replace(BASE, extra=BACKGROUND + 13), "people"),
    "joints": Arm("joints as a global vector", replace(BASE, vector=PALETTE + 2 * 3 * 24 * 3), "joints"),
}  # fmt: skip
PLAN = (*((arm, 0) for arm in ("rotary", "none", "person_map", "no_depth", "additive", "no_identity", "part_map")),
        *((arm, 1) for arm in ("rotary", "none", "person_map", "no_depth")), ("one_direction", 0), ("additive", 1),
        ("joints", 0), ("no_time", 0), ("no_identity", 1), ("one_direction", 1))  # fmt: skip


def used_parameters(model: InterspatialDiT, given: str) -> int:
    """Parameters that take part: those of the point branch do not where no points are given."""
    idle = ("points", "interspatial", "feed_points", "down") if given != "points" else ()
    return sum(p.numel() for n, p in model.named_parameters() if not set(n.split(".")) & set(idle)
               and not (idle and "points_" in n))  # fmt: skip


def build(arm: Arm) -> InterspatialDiT:
    """The arm's network, with as many used parameters as the rotary arm within a few per cent."""
    goal = used_parameters(InterspatialDiT(BASE), "points")
    config = arm.config
    if arm.given != "points":
        lacking = goal - used_parameters(InterspatialDiT(config), arm.given)
        config = replace(config, feed=config.feed + lacking / (config.depth * (2 * config.width + 1) * config.width))
    model = InterspatialDiT(config)
    model.start()
    return model


@dataclass(frozen=True)
class Conditions:
    """Tensors of N clips: video [N, 3, T, H, W] and background in -1..1; what the arms may be given."""

    video: Tensor
    background: Tensor
    palette: Tensor
    points: Points
    maps: Tensor
    joints: Tensor

    @staticmethod
    def of(shard: dict[str, Tensor], depth: str, side: int = 32, fps: float = 8.0) -> Conditions:
        tokens, identity = [], []
        for i in range(len(shard["rgb"])):
            tokens.append(body_tokens(*clips.body_and_camera(shard, i, side, fps), 1, depth))
            picture = shard["reference"][i].permute(2, 0, 1).float() / 127.5 - 1
            identity.append(identity_features(picture, *clips.reference_body(shard, i, picture.shape[-1])))
        points = Points(*(torch.stack([getattr(t, name) for t in tokens]) for name in
                          ("place", "usable", "content", "person", "part")), torch.stack(identity))  # fmt: skip
        people = torch.nn.functional.one_hot(shard["zones"].long(), 13)[..., 1:].permute(0, 4, 1, 2, 3).float()
        near = (2.0 / shard["depth"].float().clamp(min=1.0))[:, None] * people.sum(1, keepdim=True)
        view = torch.einsum("ntij,nptkj->nptki", shard["w2c"][:, :, :3, :3], shard["joints"])
        view = (view + shard["w2c"][:, None, :, None, :3, 3]) * shard["known"][:, :, :, :1, None]
        return Conditions(to_signed(shard["rgb"]), to_signed(shard["background"]), shard["palette"].flatten(1) * 2 - 1,
                          points, torch.cat([people, near], 1), view.flatten(1) / 2)  # fmt: skip

    def kwargs(self, arm: Arm, pick: Tensor, with_background: Tensor) -> dict:
        """What the arm's network is given for clips `pick`. with_background: [B] 0 or 1"""
        shown = with_background.view(-1, 1, 1, 1, 1).float()
        background = self.background[pick] * shown
        extra = torch.cat([background, shown.expand_as(background[:, :1])], 1)
        if arm.given == "people":
            extra = torch.cat([extra, self.maps[pick]], 1)
        if arm.given == "map":
            maps = self.maps[pick]
            extra = torch.cat([extra, maps[:, :6] + maps[:, 6:12], maps[:, 12:]], 1)
        vector = self.palette[pick]
        if arm.given == "joints":
            vector = torch.cat([vector, self.joints[pick]], 1)
        p = self.points
        points = Points(p.place[pick], p.usable[pick], p.content[pick], p.person[pick], p.part[pick], p.identity[pick])
        return {"extra": extra, "vector": vector, "points": points if arm.given == "points" else None}


def to_signed(x: Tensor) -> Tensor:
    """[N, T, H, W, 3] bytes -> [N, 3, T, H, W] in -1..1"""
    return x.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def prepared(depth: str) -> Conditions:
    """The training clips, made once for each depth mode."""
    path = FOLDER / f"conditions-{depth}.pt"
    if not path.exists():
        found = Conditions.of(clips.load("pixels"), depth)
        FOLDER.mkdir(parents=True, exist_ok=True)
        plain = {**vars(found), "points": vars(found.points)}
        clips.save(plain, path)
    saved = torch.load(path, weights_only=True)
    return Conditions(**{**saved, "points": Points(**saved["points"])})


def train(name: str, seed: int, minutes: float, steps: int) -> None:
    arm, folder = ARMS[name], FOLDER / f"{name}-{seed}"
    torch.manual_seed(seed)
    model = build(arm)
    learner = Learner(model, folder, steps, muon_rate=0.04, rate=4e-3)
    if learner.step >= steps:
        return
    data = prepared(arm.config.depth_mode)
    generator = torch.Generator().manual_seed(1000 * seed + learner.step)
    print(f"{name} seed {seed}: {used_parameters(model, arm.given)} parameters used", flush=True)

    def loss(step: int) -> Tensor:
        pick = torch.randint(len(data.video), (BATCH,), generator=generator)
        sigma = noise_levels(BATCH, generator)
        video = data.video[pick]
        noise = torch.randn(video.shape, generator=generator)
        given = data.kwargs(arm, pick, torch.rand(BATCH, generator=generator) < 0.5)
        out = model(noised(video, sigma, noise), sigma * 1000, **given)
        return clip_loss(out, video, noise, sigma)

    learner.run(loss, minutes, every=500)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=("all", *ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=1e9)
    args = parser.parse_args()
    for name, seed in PLAN if args.arm == "all" else ((args.arm, args.seed),):
        train(name, seed, args.minutes, args.steps)
