#!/usr/bin/env python3
"""Set up a clone of Interspatial and run it. Python and a network connection are all it needs.

    python3 dev.py demo [arguments]    start the demo
    python3 dev.py test [arguments]    lint, then run the tests; the arguments go to pytest

The first start makes `.venv`, installs requirements.lock there, fetches ComfyUI 0.30.0 into `.comfyui` and makes a
ComfyUI base folder in `.cache`. Later starts find all that done. Set COMFYUI_PATH to use a ComfyUI of your own: it is
only read.
"""

import sys

# Checked before the imports: an older Python would end there in a traceback instead of this sentence. For the same
# reason this file alone keeps to old syntax. The newest Python that torch 2.11.0 has a build for is 3.14.
if not (3, 10) <= sys.version_info[:2] <= (3, 14):
    running = ".".join(str(part) for part in sys.version_info[:3])
    sys.exit(f"dev.py: This is Python {running} ({sys.executable}), and 3.10 to 3.14 is needed. "
             f"Start dev.py with another one, for example `python3.12 dev.py test`.")
if sys.platform == "win32":
    sys.exit("dev.py: It runs on Linux and macOS; on Windows use it inside WSL. (The node pack itself runs anywhere.)")

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from devtools import ROOT
from devtools.children import started, stop_on_signals
from devtools.comfyui import find_comfyui, make_base
from devtools.environment import PYTHON, install_packages, make_venv
from devtools.server import ServerError
from devtools.stage import CACHE, SetupError, say


def set_up() -> dict[str, str]:
    """All four stages. Returns the environment for what runs next. Raises SetupError."""
    CACHE.mkdir(exist_ok=True)
    with alone():
        say("[1/4] virtual environment")
        make_venv()
        say("[2/4] Python packages")
        install_packages()
        say("[3/4] ComfyUI")
        comfyui = find_comfyui()
        say(f"[4/4] base folder for {comfyui}")
        base = make_base()
    ours = {"COMFYUI_PATH": str(comfyui), "INTERSPATIAL_BASE": str(base)}
    if ROOT not in comfyui.parents:
        ours["PYTHONPYCACHEPREFIX"] = str(CACHE / "pycache")    # Python writes nothing into a user's ComfyUI
    return {**os.environ, **ours}


@contextmanager
def alone() -> Iterator[None]:
    """One set-up at a time; a second one waits, and then finds everything done."""
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another dev.py to finish its set-up.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(arguments: list, environment: dict[str, str]) -> int:
    """Run our Python with `arguments`, its output on ours. Returns the exit status, as a shell counts it."""
    with started([PYTHON, *arguments], cwd=ROOT, env=environment) as child:
        status = child.wait()
    return status if status >= 0 else 128 - status


def demo(arguments: list[str], environment: dict[str, str]) -> int:
    return run(["devtools/demo.py", *arguments], environment)


def test(arguments: list[str], environment: dict[str, str]) -> int:
    """Lint first: it takes a second, and what it finds often explains what fails."""
    status = run(["-m", "ruff", "check", "."], environment)
    if status:
        return status
    everything = [] if any(word.startswith("tests/") for word in arguments) else ["tests"]
    return run(["-m", "pytest", "-c", "tests/pytest.ini", *everything, *arguments], environment)


COMMANDS = {"demo": demo, "test": test}


def main(words: list[str]) -> int:
    if words in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    if not words or words[0] not in COMMANDS:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    stop_on_signals()
    try:
        return COMMANDS[words[0]](words[1:], set_up())
    except (SetupError, ServerError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
