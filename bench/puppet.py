"""Puppet World's speed: seconds for a clip, for one to three puppets, on the CPU.

    OMP_NUM_THREADS=2 python -m bench.puppet [--frames 33] [--size 128] [--scenes 5]

Prints Markdown rows. One row is the median over some random scenes with a ball and a moving camera, each timed once
after a warm-up clip, posing included. "picture" is RGB and alpha; "all truth" adds depth, parts, joints, flow with
visibility, 256 surface points a puppet and the sound.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from training.package import prepare

prepare(comfy=False)
from interspatial.models.puppet.flow import optical_flow  # noqa: E402
from interspatial.models.puppet.scene import SceneSpec, random_scene  # noqa: E402
from interspatial.models.puppet.sound import sound_track  # noqa: E402
from interspatial.models.puppet.surface import surface_points  # noqa: E402
from interspatial.models.puppet.world import World, pose_scene  # noqa: E402


def picture(world: World) -> None:
    _ = world.rgb


def all_truth(world: World) -> None:
    _ = world.rgb, world.depth, world.parts, world.joints_image
    optical_flow(world)
    surface_points(world)
    sound_track(world.spec, world.frames / world.fps)


def seconds(make: Callable[[World], None], spec: SceneSpec, frames: int, size: int) -> float:
    start = time.perf_counter()
    make(pose_scene(spec, frames, size, size))
    return time.perf_counter() - start


def processor() -> str:
    """Name of the CPU, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=5)
    args = parser.parse_args()
    method = (f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.frames} frames of "
              f"{args.size}x{args.size}, median of {args.scenes} scenes, seeds 0 to {args.scenes - 1}")  # fmt: skip
    print("| puppets | picture, s | all truth, s | method |\n| --- | --- | --- | --- |")
    for puppets in (1, 2, 3):
        specs = [random_scene(seed, puppets, balls=1, move="orbit") for seed in range(args.scenes)]
        seconds(all_truth, specs[0], args.frames, args.size)
        took = [statistics.median(seconds(make, spec, args.frames, args.size) for spec in specs)
                for make in (picture, all_truth)]  # fmt: skip
        print(f"| {puppets} | {took[0]:.2f} | {took[1]:.2f} | {method} |", flush=True)


if __name__ == "__main__":
    main()
