"""Milliseconds and megabytes of calls on a GPU, and of several calls side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from bench.gpu.stage import ROUNDS, Bench, interleaved

NO_TIME = "no time was left for it"


def timed(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Milliseconds and MB above what was there."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start), 0.0
    torch.cuda.reset_peak_memory_stats()
    before, (start, stop) = torch.cuda.memory_allocated(), (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop), (torch.cuda.max_memory_allocated() - before) / 2**20


@dataclass
class Ran:
    """ms: of every round    mb: above the inputs, the result included    error: relative L2 to fp32 rows"""

    ms: list[float]
    mb: float
    error: float | None

    @property
    def median(self) -> float:
        return median(self.ms)

    @property
    def figures(self) -> dict:
        """For a row."""
        found = {"ms": self.median, "least": min(self.ms), "most": max(self.ms), "rounds": len(self.ms), "mb": self.mb}
        return found if self.error is None else {**found, "error": self.error}


def race(
    calls: dict[str, Callable[[], object]],
    bench: Bench,
    key: dict,
    *,
    error: Callable[[Tensor], float] | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Ran]:
    """All calls side by side. What cannot run leaves a row that says why, under `key`, and is not in the result.

    The first call of each compiles, the second tells its memory; `interleaved` then times them in turn.
    error: of a result, asked for where that is a tensor
    """
    tried: dict[str, tuple[float, float | None]] = {}
    for name, call in calls.items():
        if bench.left() <= 0:
            bench.put(what=name, **key, failed=NO_TIME)
            continue
        with bench.attempt(what=name, **key):
            out = call()
            lost = error(out) if error and isinstance(out, Tensor) else None
            del out
            tried[name] = timed(call, bench.device)[1], lost
        _forget(bench)
    spent = interleaved({name: calls[name] for name in tried}, bench, rounds) if tried else {}
    return {name: Ran(ms, *tried[name]) for name, ms in spent.items()}


def _forget(bench: Bench) -> None:
    """Memory of a call that failed half way is given back, so that the next does not fail of it."""
    if bench.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def relative(out: Tensor, want: Tensor) -> float:
    """Relative L2."""
    return float((out.float() - want).norm() / want.norm())
