"""Importing the pack does no work and needs neither torch nor ComfyUI; its modules need no triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server")

# For an interpreter of its own: imports the root under a name, as ComfyUI does, with some packages made unimportable.
IMPORT_ROOT = """
import importlib, importlib.util, json, sys
root, blocked, modules = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("interspatial", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["interspatial"] = pack
spec.loader.exec_module(pack)
failed = {}
for name in modules:
    try:
        importlib.import_module("interspatial." + name)
    except Exception as error:
        failed[name] = [getattr(error, "name", None) or "", f"{type(error).__name__}: {error}"]
print(json.dumps({"new": sorted(set(sys.modules) - before), "failed": failed}))
"""

# The same with ComfyUI: all of models/, and the nodes as the server would collect them.
COLLECT_NODES = """
import asyncio, importlib, json, sys
modules = json.loads(sys.argv[1])
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import interspatial
for name in modules:
    importlib.import_module("interspatial." + name)
extension = asyncio.run(interspatial.comfy_entrypoint())
print(json.dumps([node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]))
"""


def in_fresh_python(folder: Path, code: str, *arguments: str, **environment: str) -> dict | list:
    """What `code`, run in `folder`, printed as JSON on its last line. Fails with its error output.

    folder: not the repository's root, whose `nodes` would hide ComfyUI's module of that name
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def import_root(blocked: tuple[str, ...], modules: tuple[str, ...] = ()) -> dict:
    return in_fresh_python(Path(__file__).parent, IMPORT_ROOT, json.dumps([str(ROOT), blocked, modules]))


def submodules(*folders: str) -> tuple[str, ...]:
    """Dotted names of every module under these folders of the pack."""
    paths = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    dotted = (path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts for path in paths)
    return tuple(sorted(map(".".join, dotted)))


def test_root_imports_in_a_plain_python():
    found = import_root(("torch", "numpy", "einops", "triton", *HOST))
    assert "interspatial" in found["new"]
    third_party = {name.partition(".")[0] for name in found["new"]} - sys.stdlib_module_names - {"interspatial"}
    assert not third_party, "it imports other packages"
    assert not [name for name in found["new"] if name.startswith("interspatial.")], "it imports its own insides"


def test_nothing_but_comfyui_is_missing_without_comfyui_and_triton():
    failed = import_root(("triton", *HOST), submodules("kernels", "models"))["failed"]
    # Triton's own code: its two modules are imported behind a probe, and nothing else may miss it.
    compiled = {name: failed.pop(name)[0] for name in list(failed) if name.endswith("_kernel")}
    assert set(compiled.values()) == {"triton"}, compiled
    assert not [name for name in failed if name.startswith("kernels.")], failed
    wanted = {name: error for name, (missing, error) in failed.items() if missing.partition(".")[0] not in HOST}
    assert not wanted, "these need more than ComfyUI"


@pytest.mark.comfy
def test_nodes_are_collected_without_triton(tmp_path: Path):
    # A triton that cannot be imported, ahead of the real one, and the pack under a name of its own.
    (tmp_path / "triton.py").write_text("raise ImportError('blocked for this test')\n")
    (tmp_path / "interspatial").symlink_to(ROOT, target_is_directory=True)
    path = os.pathsep.join([str(tmp_path), os.environ["COMFYUI_PATH"]])
    nodes = in_fresh_python(tmp_path, COLLECT_NODES, json.dumps(submodules("models")), PYTHONPATH=path)
    assert nodes
    assert len(set(nodes)) == len(nodes)
    assert all(node.startswith("Interspatial") for node in nodes)
