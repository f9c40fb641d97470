"""The demo: one workflow through a real ComfyUI server on the CPU, dense beside sparse, with the measured report.

    python devtools/demo.py      needs COMFYUI_PATH, and INTERSPATIAL_BASE: the folder that keeps the results
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path

if not __package__:      # started as a file; relative imports need to know their package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "devtools"

from . import API_WORKFLOWS, WORKFLOWS
from .children import stop_on_signals
from .convert import load
from .prompt import Progress, PromptError, Run, run_prompt
from .server import ServerError, server_from_environment

WORKFLOW = "03_sparse_vs_dense.json"
BAR = 24      # characters
KINDS = {".mp4": "video", ".webm": "video", ".png": "picture", ".jpg": "picture", ".txt": "report", ".md": "report"}


class Bar:
    """One line of progress, rewritten in place on a terminal; one line per node elsewhere (logs, CI)."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.shown = ""

    def show(self, now: Progress) -> None:
        if not self.live:
            if now.node != self.shown:
                self.shown = now.node
                print(f"  {now.seconds:5.1f} s  {now.title}", flush=True)
            return
        share = (now.done + now.value / max(now.total, 1)) / now.nodes
        filled = round(BAR * min(share, 1))
        steps = f" {now.value:.0f}/{now.total:.0f}" if now.total > 1 else ""
        line = f"[{'#' * filled}{'-' * (BAR - filled)}] {now.seconds:5.1f} s  {now.title}{steps}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:<{width}}", end="", flush=True)

    def end(self) -> None:
        if self.live:
            print()


def run_demo() -> Run:
    """Start the server, run the workflow, stop the server. Raises ServerError, PromptError."""
    if not os.environ.get("INTERSPATIAL_BASE"):
        raise ServerError("INTERSPATIAL_BASE is not set: give it the folder that shall keep the demo's results.")
    prompt, graph = API_WORKFLOWS / WORKFLOW, WORKFLOWS / WORKFLOW
    if missing := [path for path in (prompt, graph) if not path.exists()]:
        raise ServerError(f"The demo's workflow is missing: {missing[0]}.")
    print("Starting ComfyUI on the CPU ...", flush=True)
    started = time.monotonic()
    with server_from_environment() as server:
        print(f"Ready after {time.monotonic() - started:.0f} s. Running workflows/{WORKFLOW} ...", flush=True)
        bar = Bar()
        try:
            return asyncio.run(run_prompt(server, load(prompt), bar.show, workflow=load(graph)))
        finally:
            bar.end()


def describe(run: Run) -> str:
    """Where everything is, then what the report says."""
    lines = [f"Done in {run.seconds:.0f} s."]
    lines += [f"  {KINDS.get(path.suffix, 'file'):<8}{path}" for path in run.files]
    lines += [f"\n{text.strip()}" for text in run.texts]
    return "\n".join(lines)


def main() -> int:
    stop_on_signals()      # SystemExit unwinds through the server's context manager
    try:
        print(describe(run_demo()))
    except (ServerError, PromptError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
