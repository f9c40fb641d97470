"""What every test may use: the pack as `interspatial`, ComfyUI, poisoned memory, a real server, a real browser.

Without COMFYUI_PATH the pure tests run and the others are skipped, saying so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = os.environ.get("COMFYUI_PATH")
NO_COMFYUI = "COMFYUI_PATH is not set: give it the folder of a ComfyUI checkout"


def import_pack() -> None:
    """Make the repository root importable as `interspatial`, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(
        "interspatial", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["interspatial"] = module
    spec.loader.exec_module(module)


def prepare_comfyui(folder: str) -> None:
    """Let `import comfy...` work, on the CPU.

    ComfyUI reads the command line while it is imported, and without --cpu it stops on a machine without a driver. So
    its arguments are parsed here, before any test module can import it. This imports neither torch nor a node.
    """
    sys.path.insert(0, folder)
    base = os.environ.get("INTERSPATIAL_BASE") or tempfile.mkdtemp(prefix="interspatial-")
    Path(base).mkdir(parents=True, exist_ok=True)
    ours, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", base, "--disable-api-nodes"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # parses sys.argv, here and never again
    finally:
        sys.argv = ours


import_pack()
if COMFYUI:
    prepare_comfyui(COMFYUI)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses one of the fixtures below carries its marker, so that `-m "not server"` leaves it out."""
    needs = {"comfy": ("comfy",), "server": ("comfy", "server"), "browser": ("comfy", "server", "browser")}
    for item in items:
        for fixture, markers in needs.items():
            if fixture in getattr(item, "fixturenames", ()):
                for marker in markers:
                    item.add_marker(marker)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("comfy") and not COMFYUI:
        pytest.skip(NO_COMFYUI)


@pytest.fixture(scope="session")
def comfy() -> Path:
    """The ComfyUI checkout; `import comfy`, `import nodes` and `import folder_paths` are its own."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    return Path(COMFYUI)


@pytest.fixture
def inference() -> Iterator[None]:
    """As ComfyUI's executor runs nodes: no gradients, inference tensors."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory from torch.empty and its relatives holds NaN (integers: their maximum), so a value that nobody wrote
    shows in the result."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # The mode that fills fresh memory; warn_only, because other ops need not be deterministic here.
    torch.use_deterministic_algorithms(True, warn_only=True)
    if not torch.empty(1).isnan():
        pytest.fail("torch no longer fills fresh memory with NaN in deterministic mode: the poison does nothing.")
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One ComfyUI server for the whole session (`interspatial.devtools.server.Server`), only our pack loaded."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    from interspatial.devtools.server import Server

    # Results of all workflows stay cached: the frontend's tests show again what test_workflows.py computed.
    with Server(Path(COMFYUI), tmp_path_factory.mktemp("comfyui"), options=("--cache-lru", "1000")) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: object) -> dict:
    """What the server says about every node class."""
    return server.get("/object_info")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[object]:
    """One headless Chromium for the whole session (a Playwright `Browser`)."""
    from interspatial.devtools.browser import launch, why_not

    if reason := why_not():
        pytest.skip(reason)
    async with launch() as chromium:
        yield chromium
