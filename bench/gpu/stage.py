"""A stage of the GPU bench: what it measures, how long it takes, and the rows that it leaves as they come.

A stage runs in a process of its own, so that one that fails or runs out of memory ends alone and leaves no tensor on
the card. Rows are saved one by one; a stage that runs again goes on behind those that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROUNDS = 10


@dataclass
class Bench:
    """What a stage gets.

    device: "cuda", or "cpu" where the bench only shows that it runs
    smoke: sizes that a CPU core does in seconds; times mean nothing
    deadline: of `time.monotonic`, after which a stage begins no further row
    """

    path: Path
    device: str
    smoke: bool
    deadline: float
    rows: list[dict] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, device: str, smoke: bool, seconds: float) -> Bench:
        rows = json.loads(path.read_text()) if path.exists() else []
        return cls(path, device, smoke, time.monotonic() + seconds, rows)

    def left(self) -> float:
        """Seconds until the deadline; negative behind it."""
        return self.deadline - time.monotonic()

    def has(self, **key) -> bool:
        """True when there is a row with these values, which has not failed."""
        return any(all(row.get(name) == value for name, value in key.items()) and "failed" not in row
                   for row in self.rows)  # fmt: skip

    def put(self, **row) -> None:
        """Save one row: plain numbers, words and lists of them. Replaces a failed one of the same key."""
        key = {name: row[name] for name in ("what", "shape", "setting") if name in row}
        self.rows = [old for old in self.rows if not ("failed" in old and all(old.get(n) == v for n, v in key.items()))]
        self.rows.append(row)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.rows, indent=1) + "\n")
        beside.replace(self.path)
        print(" ", "  ".join(f"{name}={_short(value)}" for name, value in row.items()), flush=True)

    @contextmanager
    def attempt(self, **key) -> Iterator[None]:
        """A part that may fail: the row then says why, and the stage goes on. Out of memory is such a failure."""
        try:
            yield
        except Exception as error:  # what this card, torch or triton lacks is a row of the table
            said = next(iter(str(error).splitlines()), "")[:200]
            self.put(**key, failed=f"{type(error).__name__}: {said}")


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


@dataclass(frozen=True)
class Stage:
    """name: of the section and of its rows' file
    method: sentences for the table: what is timed against what, how often, on which data
    seconds: on an H200, from operation counts; the runner's default limit
    """

    name: str
    method: str
    seconds: float
    run: Callable[[Bench], None]


def interleaved(calls: dict[str, Callable[[], object]], bench: Bench, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of every call, in turn, so that a change of clocks meets all of them. Two warm-up rounds.

    Device events on a GPU; every call of a round is queued before the next round is waited for.
    """
    for call in [*calls.values()] * 2:
        call()
    if bench.device == "cpu":
        return {name: [_wall(call) for _ in range(rounds)] for name, call in calls.items()}
    import torch

    marks: dict[str, list[tuple]] = {name: [] for name in calls}
    torch.cuda.synchronize()
    for _ in range(rounds):
        for name, call in calls.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            marks[name].append((start, stop))
        torch.cuda.synchronize()
    return {name: [start.elapsed_time(stop) for start, stop in pairs] for name, pairs in marks.items()}


def _wall(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
