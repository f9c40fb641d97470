"""Renders the clips that body and camera control is trained on, with the truth about bodies and cameras.

    python -m training.control_clips pixels 4000    # 3 frames of 32x32: the arms of bench/interspatial
    python -m training.control_clips scenes 800     # 17 frames of 128x128: the interspatial model, encoded later

A shard is a dict of tensors, see `Shard`; shards that exist are kept. Reference pictures show the people side by side.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .package import RUNS, prepare

prepare(comfy=False)
from interspatial.models.control.body import BodyTrack  # noqa: E402
from interspatial.models.control.camera import CameraPath  # noqa: E402
from interspatial.models.control.from_world import body_of_world  # noqa: E402
from interspatial.models.puppet.control_scenes import HELD_OUT, KINDS, control_scene, kind_of, reference_scene  # noqa: E402
from interspatial.models.puppet.scene import SceneSpec  # noqa: E402
from interspatial.models.puppet.suit import ZONE_OF_PART, ZONES  # noqa: E402
from interspatial.models.puppet.world import FIRST_LIMB_PART, World, pose_scene  # noqa: E402

from .state import save  # noqa: E402

FOLDER = RUNS / "control"
SHARD, PEOPLE = 200, 2


@dataclass(frozen=True)
class Size:
    """frames, fps, side: of a clip, in pixels    points: a person    reference: side of the reference picture"""

    frames: int
    fps: float
    side: int
    points: int
    reference: int


SIZES = {"pixels": Size(3, 8.0, 32, 30, 64), "scenes": Size(17, 16.0, 128, 96, 128)}


def clip(spec: SceneSpec, size: Size) -> dict[str, Tensor]:
    """One scene with its truth, for two people; the place of a missing second one holds zeros that are not known.

    rgb, background [T, H, W, 3] uint8    zones [T, H, W] uint8: 0, or 1 + 6 * person + zone    depth [T, H, W] metres
    points [2, T, N, 3], known [2, T, N], joints [2, T, 24, 3]    K, w2c    palette [2, 6, 3]
    reference [H, W, 3] uint8 and its reference_points, reference_normals [2, 1, N, 3], reference_K, reference_w2c
    """
    world = pose_scene(spec, size.frames, size.side, size.side, size.fps)
    empty = pose_scene(replace(spec, puppets=()), size.frames, size.side, size.side, size.fps)
    body = body_of_world(world, size.points)
    shown = pose_scene(reference_scene(spec), 1, size.reference, size.reference, size.fps)
    known_as = body_of_world(shown, size.points)
    suits = torch.zeros(PEOPLE, len(ZONES), 3)
    suits[: len(spec.puppets)] = torch.tensor([puppet.suit for puppet in spec.puppets])
    return {
        "rgb": eight_bits(world.rgb), "background": eight_bits(empty.rgb), "zones": zone_map(world),
        "depth": world.depth.clamp(max=100.0).half(), "points": for_two(body.points), "known": for_two(body.known),
        "joints": for_two(body.joints), "K": world.camera.K, "w2c": world.camera.w2c, "palette": suits,
        "reference": eight_bits(shown.rgb[0]), "reference_points": for_two(known_as.points),
        "reference_normals": for_two(known_as.normals), "reference_K": shown.camera.K,
        "reference_w2c": shown.camera.w2c, "part": body.part,
    }  # fmt: skip


def for_two(x: Tensor) -> Tensor:
    """[P, ...] -> [2, ...], zeros for nobody."""
    return torch.cat([x, x.new_zeros(PEOPLE - len(x), *x.shape[1:])]) if len(x) < PEOPLE else x


def eight_bits(x: Tensor) -> Tensor:
    return (x * 255).round().byte()


def zone_map(world: World) -> Tensor:
    """Who and which zone each pixel centre shows."""
    table = torch.tensor(ZONE_OF_PART)
    limb = (world.parts - FIRST_LIMB_PART).clamp(min=0)
    zones = 1 + len(ZONES) * world.owners.clamp(min=0) + table[limb]
    return torch.where(world.owners >= 0, zones, 0).byte()


def body_and_camera(shard: dict[str, Tensor], i: int, side: int, fps: float) -> tuple[BodyTrack, CameraPath]:
    """Clip `i` of a shard as the pack's own types. shard: stacked clips"""
    camera = CameraPath(shard["K"][i], shard["w2c"][i], side, side)
    return BodyTrack(shard["points"][i], shard["known"][i], shard["part"][i], fps), camera


def reference_body(shard: dict[str, Tensor], i: int, side: int) -> tuple[BodyTrack, CameraPath]:
    """The people of clip `i` as its reference picture shows them."""
    points, normals = shard["reference_points"][i], shard["reference_normals"][i]
    known = shard["known"][i][:, :1]
    camera = CameraPath(shard["reference_K"][i], shard["reference_w2c"][i], side, side)
    return BodyTrack(points, known, shard["part"][i], 1.0, normals), camera


def write_shard(kind: str, index: int) -> None:
    torch.set_num_threads(1)
    path = FOLDER / f"{kind}-{index:03d}.pt"
    if path.exists():
        return
    seeds = range(index * SHARD, (index + 1) * SHARD)
    save(stacked([clip(control_scene(kind_of(seed), seed), SIZES[kind]) for seed in seeds]), path)
    print(path.name, flush=True)


def held_out(kind: str, scene: str, count: int, unseen: bool = False) -> dict[str, Tensor]:
    """Clips that no training sees. scene: one of KINDS    unseen: from camera heights that training never has"""
    name = f"{kind}-test-{scene}{'-unseen' if unseen else ''}.pt"
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        seeds = range(HELD_OUT, HELD_OUT + count)
        save(stacked([clip(control_scene(scene, seed, unseen), SIZES[kind]) for seed in seeds]), path)
    return torch.load(path, weights_only=True)


def stacked(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in clips]) for name in clips[0]}


def load(kind: str) -> dict[str, Tensor]:
    """All training shards of a kind in one."""
    shards = [torch.load(path, weights_only=True) for path in sorted(FOLDER.glob(f"{kind}-???.pt"))]
    if not shards:
        raise SystemExit(f"No clips yet: python -m training.control_clips {kind} 4000")
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(SIZES))
    parser.add_argument("count", type=int)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    indices = range((args.count + SHARD - 1) // SHARD)
    with ProcessPoolExecutor(args.processes) as pool:
        list(pool.map(write_shard, [args.kind] * len(indices), indices))
    for scene in KINDS:
        held_out(args.kind, scene, 64)
    held_out(args.kind, "orbit", 64, unseen=True)
