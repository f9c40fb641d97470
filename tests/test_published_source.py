"""What the published sources may not hold: calls the registry forbids, host imports outside the door, odd letters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNPUBLISHED = {"tests", "training", "bench", "devtools", "dev.py"}

FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_MODULES = {"subprocess", "pickle", "dill", "marshal", "ctypes", "socket", "requests", "urllib", "http"}
FORBIDDEN_CALLS = {"torch.load", "torch.cuda.empty_cache", "torch.cuda.synchronize", "os.system", "os.popen"}
FORBIDDEN_METHODS = {"cuda"}
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "nodes"}
DOORS = ("models/host",)      # the only place in models/ that knows ComfyUI


def published() -> list[Path]:
    """Python files of the published archive, relative to the root."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(f for f in files if f.parts[0] not in UNPUBLISHED and not f.parts[0].startswith("."))


each_file = pytest.mark.parametrize("file", published(), ids=str)


def tree_of(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), str(file))


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Top-level package and line of every absolute import, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0], node.lineno


def relative_imports(tree: ast.Module, file: Path) -> Iterator[str]:
    """Top folder of the pack that every relative import reaches into."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parent.parts[: len(file.parent.parts) - node.level + 1]
            target = [*base, *(node.module or "").split(".")] if node.module else [*base, node.names[0].name]
            yield target[0]


def offences(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield f"line {node.lineno}: {node.id}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
            yield f"line {node.lineno}: {ast.unparse(node)}"
    yield from (f"line {line}: import {name}" for name, line in imports(tree) if name in FORBIDDEN_MODULES)


BAD = """
import pickle, os.path
from urllib.request import urlopen
value = eval("1")
model.cuda()
state = torch.load(value)
"""
REACHING = """
from ...kernels import pool
from .. import host
from .plan import BlockPlan
"""


def test_the_scan_sees_what_it_looks_for():
    assert len(list(offences(ast.parse(BAD)))) == 5
    reached = relative_imports(ast.parse(REACHING), Path("models/attention/radial.py"))
    assert list(reached) == ["kernels", "models", "models"]


def test_what_is_not_scanned_is_not_published():
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {f"/{name}" if name.endswith(".py") else f"/{name}/" for name in UNPUBLISHED} <= set(ignored)


@each_file
def test_no_forbidden_calls(file: Path):
    assert list(offences(tree_of(file))) == []


@each_file
def test_only_the_door_knows_comfyui(file: Path):
    known = {name for name, _ in imports(tree_of(file))} & HOST_MODULES
    behind_the_door = file.with_suffix("").as_posix().startswith(DOORS)
    allowed = HOST_MODULES if behind_the_door else {"comfy_api"} if file.parts[0] in ("nodes", "__init__.py") else set()
    assert known <= allowed


@each_file
def test_arrows_point_down(file: Path):
    below = {"kernels": {"kernels"}, "models": {"models", "kernels"}}
    if file.parts[0] in below:
        assert set(relative_imports(tree_of(file), file)) <= below[file.parts[0]]


@each_file
def test_readable_on_every_windows(file: Path):
    text = (ROOT / file).read_bytes().decode("utf-8")
    text.encode("cp1252")
    assert "\r" not in text
