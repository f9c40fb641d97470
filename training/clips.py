"""Renders Puppet World clips to disk, in shards that trainers read as memory maps.

    python -m training.clips prompts 3000   # the small language of the text-to-video checkpoint (training prompts only)
    python -m training.clips any 600        # anything the world knows (for the VAE)
    python -m training.clips suits 1000     # the scenes of body and camera control (for the VAE)

A shard is a uint8 array [clips, F, H, W, 3] and a JSON list of captions beside it. Shards that exist are kept.
"""

from __future__ import annotations

import argparse
import json
import random

import numpy as np

from .package import RUNS, prepare

prepare(comfy=False)
from interspatial.models.puppet import control_scenes, scene, world  # noqa: E402

SHARD = 100
FRAMES, SIZE, FPS = 17, 128, 16.0


def specs(kind: str, shard: int) -> list[scene.SceneSpec]:
    """The scenes of one shard; the same for the same arguments, on any machine."""
    rng = random.Random(f"{kind}-{shard}")
    if kind == "any":
        return [scene.random_scene(rng.randrange(1 << 30)) for _ in range(SHARD)]
    if kind == "suits":
        seeds = range(shard * SHARD, (shard + 1) * SHARD)
        return [control_scenes.control_scene(control_scenes.kind_of(seed), seed) for seed in seeds]
    train, _ = scene.split_prompts()
    return [rng.choice(train).scene(rng) for _ in range(SHARD)]


def write_shard(kind: str, shard: int) -> None:
    folder = RUNS / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{shard:03d}.npy"
    if path.exists():
        return
    clips, sentences = np.empty((SHARD, FRAMES, SIZE, SIZE, 3), np.uint8), []
    for i, spec in enumerate(specs(kind, shard)):
        rgb = world.pose_scene(spec, FRAMES, SIZE, SIZE, FPS).rgb
        clips[i] = (rgb * 255).round().byte().numpy()
        sentences.append(spec.caption())
    path.with_suffix(".json").write_text(json.dumps(sentences))
    part = path.with_suffix(".part.npy")
    np.save(part, clips)
    part.rename(path)
    print(path.name, flush=True)


def named_shards(kind: str) -> list[tuple[str, np.ndarray]]:
    """All shards of a kind as memory maps, by name."""
    paths = sorted(p for p in (RUNS / "clips").glob(f"{kind}-???.npy"))
    return [(p.stem, np.load(p, mmap_mode="r")) for p in paths]


def captions(name: str) -> list[str]:
    return json.loads((RUNS / "clips" / f"{name}.json").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("prompts", "any", "suits"))
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    for index in range((args.count + SHARD - 1) // SHARD):
        write_shard(args.kind, index)
