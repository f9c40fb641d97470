"""The GPU bench: every stage in a process of its own, inside one budget of seconds.

    python -m bench.gpu --out DIR [--stages a b] [--seconds 540] [--smoke] [--device cuda|cpu]

What is worth most runs first. DIR gets results.json, results.md and log.txt, saved as rows come; a second call with the
same DIR goes on: first with stages that have not ended well, then with those that have failed rows. Clocks and other
settings of the card are read and left alone. --smoke runs tiny sizes, on the CPU unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from devtools.children import started, stop_on_signals

from . import bars, machine
from .record import Record

CHILD = Path(__file__).resolve().with_name("child.py")
ROOT = CHILD.parents[2]

# What is worth most first, after whether the kernels are right at all. `headlines` uses what the steps have measured.
STAGES = (
    ("bench.gpu.checks", "checks"),
    ("bench.gpu.checks_others", "checks_others"),
    ("bench.gpu.attention", "attention"),
    ("bench.gpu.ceilings", "ceilings"),
    ("bench.gpu.steps", "wan720"),
    ("bench.gpu.steps", "hunyuan720"),
    ("bench.gpu.compiles", "compiles"),
    ("bench.gpu.selection", "selection"),
    ("bench.gpu.memory_safe", "memory_safe"),
    ("bench.gpu.headlines", "headlines"),
    ("bench.gpu.overhead", "overhead"),
    ("bench.gpu.steps", "wan480"),
    ("bench.gpu.steps", "minimax_h3"),
    ("bench.gpu.tuned", "tuned"),
)

GRACE = 1 / 27  # of the budget, 20 s of 540: for a row that began before the limit, and again to end a stage
SAMPLE_SECONDS = 10.0  # between two looks at the clocks


@dataclass
class Runner:
    """deadline: of time.monotonic, when everything has to be over"""

    record: Record
    device: str
    smoke: bool
    deadline: float
    grace: float
    work: Path
    facts: dict | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.record.folder / "log.txt"
        for name, stage in self.record.content["stages"].items():  # all of them: one may look at what another left
            self.rows(name).write_text(json.dumps(stage["rows"]))

    def rows(self, name: str) -> Path:
        """Where a stage's process finds and leaves its rows; those of other stages lie beside."""
        return self.work / f"{name}.rows.json"

    def granted(self) -> float:
        """Seconds that a stage may have that begins now."""
        return self.deadline - time.monotonic() - 2 * self.grace

    def run(self, module: str, name: str) -> None:
        """One stage; its rows, its end and the clocks go into the record."""
        stage = self.record.stage(name)
        if self.granted() < self.grace:
            return
        run = {"began": time.strftime("%Y-%m-%d %H:%M:%S"), "clocks_before": machine.clocks()}
        samples: list[dict] = []
        began = time.monotonic()
        print(f"{name}: up to {self.granted():.0f} s", flush=True)
        with self.log.open("a") as log:
            log.write(f"\n=== {name}, {run['began']}\n")
            log.flush()
            status = self.watch(self.command(module, name), log, name, samples)
        said = _read(self.work / f"{name}.child.json") or {}
        self.facts = self.facts or said.get("machine")
        stage["method"] = said.get("method") or stage["method"]
        run["seconds"] = round(time.monotonic() - began, 1)
        run["ended"] = said.get("ended") or _ending(status, run["seconds"])
        run["clocks_after"], run["clocks_during"] = machine.clocks(), machine.range_of(samples)
        run["machine"] = self.record.machine(self.facts) if self.facts else None
        run["revision"] = machine.revision()["revision"]
        stage["runs"].append(run)
        self.collect(name)
        print(f"{name}: {run['ended']}, {run['seconds']} s, {len(stage['rows'])} rows", flush=True)

    def command(self, module: str, name: str) -> list:
        words = [sys.executable, CHILD, module, name, "--work", self.work, "--device", self.device,
                 "--seconds", self.granted(), "--grace", self.grace]  # fmt: skip
        return words + ["--smoke"] * self.smoke + ["--facts"] * (self.facts is None)

    def watch(self, command: list, log: object, name: str, samples: list[dict]) -> int | None:
        """Wait for the stage, saving its rows as they come. returns: exit status; None when it was ended by force"""
        hard, looked, seen = time.monotonic() + self.granted() + self.grace, time.monotonic(), 0
        limited = False
        env = {**os.environ, "PYTHONUNBUFFERED": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {})
        with started(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=env) as child:
            while time.monotonic() < hard:
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(0.2)
                if not limited and (said := _read(self.work / f"{name}.child.json")) and "limit" in said:
                    hard, limited = min(hard, time.monotonic() + said["limit"] + self.grace), True
                if self.rows(name).exists() and (changed := self.rows(name).stat().st_mtime_ns) != seen:
                    seen = changed
                    self.collect(name)
                if time.monotonic() - looked > SAMPLE_SECONDS:
                    looked = time.monotonic()
                    samples.append(machine.clocks())
            os.killpg(child.pid, signal.SIGKILL)  # it may wait for the card, deaf to everything else
            return None

    def collect(self, name: str) -> None:
        rows = _read(self.rows(name))
        if rows is not None:
            self.record.stage(name)["rows"] = rows
        self.record.save()


def _read(path: Path) -> list | dict | None:
    """What a stage's process wrote; None where there is nothing to read."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def _ending(status: int | None, seconds: float) -> str:
    """How a stage ended that could not say so itself."""
    if status is None:
        return f"ended by force after {seconds:.0f} s; log.txt says where it was"
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"failed: exit status {status}; see log.txt"


def order(record: Record, stages: tuple = STAGES) -> list[tuple[str, str]]:
    """What is left to do: stages that have not ended well, then those of which single rows failed."""
    open_ = [stage for stage in stages if record.ended(stage[1]) != "done"]
    return open_ + [stage for stage in stages if stage not in open_ and record.has_failed_rows(stage[1])]


def bench(args: argparse.Namespace, stages: tuple = STAGES) -> bool:
    """Run what is to be run. returns: did every stage end well"""
    deadline = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    record = Record(args.out, args.device or ("cpu" if args.smoke else "cuda"), args.smoke)
    chosen = [stage for stage in stages if stage[1] in args.stages] if args.stages else order(record, stages)
    work = Path(tempfile.mkdtemp(prefix="interspatial-gpu-"))
    try:
        runner = Runner(record, record.content["device"], args.smoke, deadline, args.seconds * GRACE, work)
        for module, name in chosen:
            runner.run(module, name)
    finally:
        record.save()
        shutil.rmtree(work, ignore_errors=True)
    print("\n".join(bars.lines(record.content)))
    return all(record.ended(name) == "done" for _, name in chosen)


def main() -> None:
    names = [name for _, name in STAGES]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, results.md and log.txt")
    parser.add_argument("--stages", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; times mean nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    stop_on_signals()
    sys.exit(not bench(parser.parse_args()))


if __name__ == "__main__":
    main()
