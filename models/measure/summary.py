"""A comparison and the runs behind its clips, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import Comparison
from .stopwatch import RunRecord

GIB = 1 << 30
Measured = Sequence[tuple[str, "RunRecord | None"]]  # name of a clip, the run that made it


def summarize(found: Comparison, size: tuple[int, int], fps: float, measured: Measured) -> list[str]:
    """One line for each quantity.

    size: width, height in pixels
    fps: frames per second, 0 if unknown
    measured: the clips that have a Measurement, the reference first; None where it holds no run
    """
    frames, worst, least = len(found.psnr), found.worst_frame, int(found.ssim.argmin())
    duration = f", {frames / fps:.2f} s at {fps:g} frames per second" if fps > 0 else ""
    at = f" ({worst / fps:.2f} s)" if fps > 0 else ""
    added = found.flicker_test - found.flicker_reference
    return [
        f"{frames} frames of {size[0]} x {size[1]}{duration}",
        f"PSNR {found.clip_psnr:.2f} dB over the clip; lowest {found.psnr[worst]:.2f} dB at frame {worst}{at}"
        if found.clip_psnr < math.inf
        else "PSNR: every frame is identical",
        f"SSIM {found.clip_ssim:.4f} on average; lowest {found.ssim[least]:.4f} at frame {least}",
        f"flicker {found.flicker_test:.2f} levels of 255; reference {found.flicker_reference:.2f}, added {added:+.2f}",
        *(f"{name}: {describe(run)}" for name, run in measured),
        *compare_runs(measured),
    ]


def describe(run: RunRecord | None) -> str:
    """Seconds, steps, calls and memory of one run."""
    if run is None:
        return (
            "no run recorded. Wire the MODEL of Measure Run into the sampler of this clip; if it is wired, the clip "
            "came from the cache: change the seed to render it again"
        )
    steps = f"{run.steps} steps of {run.seconds_per_step:.3f} s, {run.model_calls} model calls"
    peak = f"{run.peak_bytes / GIB:.2f} GiB ({run.memory})"
    return (
        f"{run.seconds:.2f} s sampling ({steps}) after {run.setup_seconds:.2f} s of loading and set-up; "
        f"peak memory {peak}"
    )


def compare_runs(measured: Measured) -> list[str]:
    """How the second run does against the first, if there are two."""
    runs = [run for _, run in measured if run is not None and run.seconds > 0]
    if len(runs) < 2:
        return []
    before, after = runs
    memory = (after.peak_bytes - before.peak_bytes) / GIB
    (slow, _), (fast, _) = measured
    return [f"{fast} against {slow}: {before.seconds / after.seconds:.2f} times as fast, {memory:+.2f} GiB peak memory"]
