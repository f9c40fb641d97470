"""What the stages of set-up share: the cache folder, the error, a check of disk space, a command with its log."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from . import ROOT
from .children import started

CACHE = ROOT / ".cache"
ALIVE_SECONDS = 10.0    # between two lines that show a long command alive

# What a line of pip's log gives away about the cause.
CAUSES = (
    ("the disk is full", r"No space left on device"),
    ("the network or the package index cannot be reached",
     r"after connection broken by|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError"),
)
ERROR_LINE = re.compile(r"error|\w+Error:", re.IGNORECASE)


class SetupError(Exception):
    """Set-up cannot go on. The text says what failed, why, and what to do."""


def say(text: str) -> None:
    print(text, flush=True)


def sha256(path: Path) -> str | None:
    """Hexadecimal, or None when there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def stamped(stamp: Path, content: str | None) -> bool:
    """Does `stamp`, a file that a finished stage leaves behind, say `content`?"""
    return stamp.is_file() and stamp.read_text() == content


def require_space(gigabytes: float, what: str) -> None:
    """Raises SetupError when less is free where the clone lies."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < gigabytes:
        raise SetupError(
            f"{what} need about {gigabytes} GB of free disk space, and {ROOT} has {free:.1f} GB. "
            f"Free some and run the same command again."
        )


def run_logged(command: list, log: Path) -> int:
    """Run `command` with its output in `log`, showing now and then that it is alive. Returns the exit status."""
    scratch = CACHE / "tmp"    # pip unpacks gigabytes into TMPDIR, and /tmp is often a small memory disk
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    env = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    start = shown = time.monotonic()
    try:
        with log.open("w") as output, started(command, cwd=ROOT, stdout=output, stderr=output, env=env) as child:
            while child.poll() is None:
                time.sleep(0.05)
                now = time.monotonic()
                if now - shown >= ALIVE_SECONDS:
                    shown = now
                    say(f"      {now - start:.0f} s: {log_lines(log)[-1][:100]}")
            return child.returncode
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def log_lines(log: Path) -> list[str]:
    return [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["(no output)"]


def failure(what: str, log: Path) -> SetupError:
    """The error for a command that failed: the cause when its log gives one away, and the line that matters in it."""
    lines = log_lines(log)
    errors = [line for line in lines if ERROR_LINE.match(line)]
    cause = next((f": {text}" for text, sign in CAUSES if any(re.search(sign, line) for line in lines)), "")
    return SetupError(
        f"{what}{cause}. Its log, {log.relative_to(ROOT)}, says: {(errors or lines)[-1][:300]} "
        f"(What is done so far is kept: run the same command again to go on.)"
    )
