"""What is compiled and when: ten lengths in one process, and the first call of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import torch
from interspatial.models.attention import METHODS
from interspatial.models.layout import arrange

from bench.gpu.calls import Sampling, remember_tiles, steady
from bench.gpu.stage import Bench, Stage
from bench.gpu.timing import NO_TIME

ROOT = Path(__file__).resolve().parents[2]
# Grids of 8,190 to 35,100 tokens, odd ones among them, whose tiles of 8 x 8 and runs of 64 have more than 32 tokens, as
# those of all clips of 480p and more do. Heads and batches change with them.
GRIDS = ((21, 30, 52), (13, 30, 45), (9, 45, 80), (7, 45, 81), (11, 31, 53), (5, 40, 64), (6, 39, 35), (13, 45, 60),
         (10, 33, 47), (17, 29, 51))  # fmt: skip
SMALL = ((2, 15, 20), (3, 15, 21), (2, 16, 22))
HEADS, BATCHES, DIM, DENSITY = (40, 24), (1, 1, 2), 128, 0.2
TAILS = ("row", "block", None)
SHAPE, CHILD_SECONDS = "wan480", 150
FIRST = ("cold", "disk", "warm")  # nothing there; compiled kernels and tiles of an earlier process; and Warm Up Kernels


@contextmanager
def compiled() -> Iterator[list[str]]:
    """Names of the kernels that Triton builds, or loads from its cache on disk, meanwhile.

    The hook is called for what is not in the process's own cache, so a kernel that is specialised on a length shows.
    """
    names: list[str] = []
    try:
        from triton import knobs
    except ImportError:
        yield names
        return

    def note(*, fn: object, **_: object) -> None:
        names.append(fn.name)

    before, knobs.runtime.jit_post_compile_hook = knobs.runtime.jit_post_compile_hook, note
    try:
        yield names
    finally:
        knobs.runtime.jit_post_compile_hook = before


def at_length(method: str, grid: tuple[int, int, int], heads: int, batch: int, device: str) -> None:
    """First and later step of a method."""
    layout = arrange([("video", grid)])
    qkv = [torch.randn(batch, layout.tokens, heads, DIM, device=device, dtype=torch.bfloat16) for _ in "qkv"]
    tails = TAILS if method == "draft" else TAILS[:1]
    for tail in tails:
        steady(method, DENSITY, Sampling(*qkv, layout), tail).attend()


def lengths(bench: Bench) -> int:
    """Kernels compiled after the first length, over all methods; a row for each method.

    raises: TimeoutError when some had to be left out
    """
    grids, heads = (SMALL, (2, 3)) if bench.smoke else (GRIDS, HEADS)
    total = 0
    for method in METHODS:
        key = {"what": "lengths of a method", "shape": f"{len(grids)} lengths", "setting": method}
        if bench.left() <= 0:
            raise TimeoutError(f"{NO_TIME} from {method} on")
        with bench.attempt(**key):
            later: list[str] = []
            for number, (grid, head, batch) in enumerate(zip(grids, cycle(heads), cycle(BATCHES), strict=False)):
                with compiled() as names:
                    at_length(method, grid, head, batch, bench.device)
                if number == 0:
                    first = list(names)
                else:
                    later += names
            total += len(later)
            bench.put(**key, compiled=len(later), at_first=len(first), names=sorted(set(later)))
    return total


def first_call(kind: str, work: Path, bench: Bench) -> dict:
    """Seconds of a fresh process. kind: one of FIRST, which run in their order on the same folder"""
    words = [sys.executable, "-m", "bench.gpu.first_call", "--shape", SHAPE, "--device", bench.device]
    words += ["--tiles", str(work / "tiles.json")] + ["--warm-up"] * (kind == "warm") + ["--smoke"] * bench.smoke
    paths = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "TRITON_CACHE_DIR": str(work / "triton"), "PYTHONPATH": paths}
    limit = max(1.0, min(CHILD_SECONDS, bench.left()))
    ended = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit)
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    return json.loads(ended.stdout.strip().splitlines()[-1])


def first_calls(bench: Bench) -> None:
    if all(bench.has(what=_first(kind), shape=SHAPE, setting=kind) for kind in FIRST):
        return
    with tempfile.TemporaryDirectory(prefix="interspatial-compiles-") as folder:
        for kind in FIRST:
            key = {"what": _first(kind), "shape": SHAPE, "setting": kind}
            with bench.attempt(**key):
                found = first_call(kind, Path(folder), bench)
                bench.put(**key, **found, share=found["first"] / found["first_of_runs"] - 1,
                          share_of_later=found["first"] / found["later"] - 1)  # fmt: skip


def _first(kind: str) -> str:
    """What "Done means" goes by is the first call behind a warm-up."""
    return "first_call" if kind == "warm" else "first call without a warm-up"


@torch.no_grad()
def run(bench: Bench) -> None:
    first_calls(bench)
    remember_tiles(bench)
    key = {"what": "lengths", "shape": "all", "setting": "all methods"}
    if not bench.has(**key):
        with bench.attempt(**key):
            bench.put(**key, compiled=lengths(bench))


STAGES = (
    Stage(
        "compiles",
        "lengths: every method in ten lengths, 24 and 40 heads, batch 1 and 2, in one process, first and later step; "
        "draft with every tail; compiled counts the kernels that Triton had not had in this process at the first of "
        "them, as its post-compile hook tells. first_call: seconds of the first call of Sparse Video Attention (draft, "
        "0.2, tail row) in a fresh process, wall time from idle device to idle device; first_of_runs: the same of nine "
        "later runs, median, as every run builds its tables in its first call; later: of nine later calls of one run; "
        "share and share_of_later: the first over each, less one. cold: empty cache on disk, no tile known; disk: both "
        "as the cold process left them; warm: the same behind what Warm Up Kernels does, whose seconds are warm_up.",
        240,
        run,
    ),
)
