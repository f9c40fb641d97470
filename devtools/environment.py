"""The virtual environment `.venv` and the packages that requirements.lock names."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

from . import ROOT
from .stage import CACHE, SetupError, failure, require_space, run_logged, say, sha256, stamped

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"

PACKAGES = "The Python packages (torch with its CUDA libraries)"
PACKAGES_GB = 12    # Linux: 6.5 GB stay, 4 GB of them torch and CUDA; pip holds the rest while it installs
UPDATE_GB = 2       # with torch in place already


def make_venv() -> None:
    """Raises SetupError when `.venv` is there but does not work and is not one that we were just making."""
    unfinished = CACHE / "venv.unfinished"
    if VENV.exists() and not unfinished.exists():
        if not PYTHON.exists() or subprocess.run([PYTHON, "-c", "import pip"], capture_output=True).returncode:
            raise SetupError(
                f"{VENV} is half made: its Python or its pip does not run, as after an interrupted set-up or a change "
                f"of the system's Python. Delete that folder and run the same command again."
            )
        return
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"This Python ({sys.executable}) lacks the module {module}, which makes virtual environments. "
                f"Install it (Debian and Ubuntu: `apt install python3-venv`) and run the same command again."
            )
    require_space(PACKAGES_GB, PACKAGES)
    unfinished.touch()
    shutil.rmtree(VENV, ignore_errors=True)
    log = CACHE / "venv.log"
    if run_logged([sys.executable, "-m", "venv", VENV], log):
        raise failure(f"Making the virtual environment {VENV} failed", log)
    unfinished.unlink()


def install_packages() -> None:
    """Bring `.venv` to what the lock file says. Raises SetupError; what pip has finished by then is kept."""
    stamp, locked = VENV / "interspatial.stamp", sha256(LOCK)
    if stamped(stamp, locked):
        return
    stamp.unlink(missing_ok=True)
    forget_half_installed()
    has_torch = any(VENV.glob("lib/python*/site-packages/torch-*.dist-info"))
    require_space(UPDATE_GB if has_torch else PACKAGES_GB, PACKAGES)
    log = CACHE / "pip.log"
    say(f"      pip installs {LOCK.name} (several GB the first time; its log is {log.relative_to(ROOT)})")
    if run_logged([PYTHON, "-m", "pip", "install", "--no-input", "--progress-bar", "off", "-r", LOCK], log):
        raise failure("Installing the Python packages failed", log)
    log = CACHE / "torch.log"
    if run_logged([PYTHON, "-c", "import torch, torchvision, torchaudio"], log):
        raise failure("torch, torchvision and torchaudio do not work together", log)
    stamp.write_text(locked)


def forget_half_installed() -> None:
    """Let pip install again what an interrupted pip left half written: it would take that for installed.

    pip writes the INSTALLER file of a package after all its other files.
    """
    for record in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (record / "INSTALLER").exists():
            shutil.rmtree(record)
