"""Stages that end in every way a stage can; run by the runner in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

from bench.gpu.stage import Bench, Stage


def works(bench: Bench) -> None:
    for number in range(3):
        if not bench.has(what="row", setting=number):
            bench.put(what="row", setting=number, measured_by=os.getpid(), smoke=bench.smoke, device=bench.device)


def stumbles(bench: Bench) -> None:
    """Its first row fails until there is a second one."""
    with bench.attempt(what="row", setting="first"):
        if not bench.has(what="row", setting="second"):
            raise RuntimeError("no second row yet\nmore")
        bench.put(what="row", setting="first")
    bench.put(what="row", setting="second")


def looks(bench: Bench) -> None:
    """At what another stage has left."""
    bench.put(what="row", seen=len(json.loads((bench.path.parent / "works.rows.json").read_text())))


def fails(bench: Bench) -> None:
    bench.put(what="row", setting="before")
    raise RuntimeError("this card | has no engine\nline 2")


def dies(bench: Bench) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(bench: Bench) -> None:
    """As one that waits for the card does: it hears nothing. A child of its own hangs as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    bench.put(what="row", setting="before", child=subprocess.Popen(["sleep", "600"]).pid)
    while True:
        time.sleep(60)


STAGES = tuple(Stage(call.__name__, f"How it {call.__name__}.", 0.4, call)
               for call in (works, stumbles, looks, fails, dies, hangs))  # fmt: skip
