"""Child processes that end with their parent: on a normal exit, on an error, on Ctrl-C and on `kill`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASK_SECONDS = 5.0       # for a child that was interrupted to end what it started itself, such as a server
FORCE = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 0.5))      # and the seconds to wait after each


@contextmanager
def started(command: list, **options) -> Iterator[subprocess.Popen]:
    """Run `command` in a process group of its own, which ends with this block, however the block is left.

    options: of subprocess.Popen
    """
    child = None
    try:
        with signals_held():    # one that came before Popen returns would leave a child that nobody knows
            child = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
        yield child
    finally:
        if child is not None:
            end_group(child)


@contextmanager
def signals_held() -> Iterator[None]:
    """What stop_on_signals reacts to is put off to the end of this block.

    A signal mask would do the same, and be inherited by the child for good.
    """
    came = []
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def end_group(child: subprocess.Popen) -> None:
    """End a child and all that it started, even what outlived it."""
    try:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(ASK_SECONDS)
        for number, seconds in FORCE:
            deadline = time.monotonic() + seconds
            os.killpg(child.pid, number)
            while time.monotonic() < deadline:
                child.poll()
                os.killpg(child.pid, 0)
                time.sleep(0.02)
    except (ProcessLookupError, PermissionError):       # nobody is left; macOS says the second of a group of zombies
        return


def stop_on_signals() -> None:
    """Turn Ctrl-C, `kill` and a closed terminal into SystemExit: every `finally` runs, undisturbed by a second one."""

    def stop(number: int, _frame: object) -> None:
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:       # nohup stays in force
            signal.signal(number, stop)
