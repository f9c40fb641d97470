"""Tests of Triton kernels in Triton's interpreter, on the CPU: each interpreted_*.py in a process of its own.

The variable that turns the interpreter on must be there before Triton is imported, and would make every other test that
attends interpret kernels too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("file", sorted(HERE.glob("interpreted_*.py")), ids=lambda file: file.stem)
def test_in_the_interpreter(file):
    pytest.importorskip("triton")
    away = ("COMFYUI_PATH", "PYTEST_ADDOPTS")  # they need no ComfyUI, and options of this run are not theirs
    environment = {name: value for name, value in os.environ.items() if name not in away} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-c", str(HERE.parent / "pytest.ini"), str(file), "-q", "--tb=short"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=environment, cwd=HERE.parent.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
