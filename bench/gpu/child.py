"""One stage in a process of its own. Started by __main__.py as a file, so that it has a word when imports fail.

It leaves two files in --work: NAME.rows.json, the stage's rows as they come, and NAME.child.json, what the runner wants
to know besides: method, seconds expected and granted, how it ended, and with --facts the machine.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import sys
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOM = 1.5  # a stage gets this many times the seconds that it expects


def open_bench() -> None:
    """Make `bench`, `interspatial` and ComfyUI importable. Where ComfyUI fails, stages that do without it still run."""
    sys.path[0] = str(ROOT)  # this file's own folder would let its neighbours pass for other packages
    try:
        import bench  # noqa: F401  importing it is the point
    except Exception:
        traceback.print_exc()
        package = types.ModuleType("bench")
        package.__path__ = [str(ROOT / "bench")]
        sys.modules["bench"] = package


class Note:
    """NAME.child.json, whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, {}

    def put(self, **what: object) -> None:
        self.content.update(what)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content))
        part.replace(self.path)


def described(error: BaseException) -> str:
    said = next(iter(str(error).splitlines()), "")[:200]
    return f"failed: {type(error).__name__}: {said}"


def machine_facts(device: str) -> dict:
    from bench.gpu import machine

    try:
        return machine.facts(device)
    except Exception as error:  # what cannot be asked must not cost the figures
        return {"device": device, "facts": described(error)}


def work(args: argparse.Namespace, note: Note) -> None:
    """Raises whatever the stage raises."""
    began = time.monotonic()
    open_bench()
    from bench.gpu.stage import Bench

    if args.facts:
        note.put(machine=machine_facts(args.device))
    stages = {stage.name: stage for stage in importlib.import_module(args.module).STAGES}
    if args.name not in stages:
        raise LookupError(f"{args.module} has no stage {args.name}, but {', '.join(stages)}.")
    stage = stages[args.name]
    limit = min(ROOM * stage.seconds, args.seconds - (time.monotonic() - began))
    note.put(method=stage.method, expected=stage.seconds, limit=limit)
    # A stage that hangs says where, just before it is ended from outside.
    faulthandler.dump_traceback_later(max(limit + 0.8 * args.grace, 0.1))
    bench = Bench.of(args.work / f"{args.name}.rows.json", args.device, args.smoke, limit)
    stage.run(bench)
    note.put(ended="done" if bench.left() > 0 else "out of time")


def main() -> None:
    parser = argparse.ArgumentParser(description="One stage of the GPU bench; python -m bench.gpu runs it.")
    parser.add_argument("module")
    parser.add_argument("name")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="granted, imports included")
    parser.add_argument("--grace", type=float, required=True, help="seconds from the limit to the end by force")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--facts", action="store_true")
    args = parser.parse_args()
    note = Note(args.work / f"{args.name}.child.json")
    try:
        work(args, note)
    except Exception as error:
        note.put(ended=described(error))
        raise


if __name__ == "__main__":
    main()
