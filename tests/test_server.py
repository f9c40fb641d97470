"""The harness itself: a server that cannot start says why; refused and failing workflows name the node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from interspatial.devtools.prompt import Progress, PromptError, run_prompt
from interspatial.devtools.server import Server, ServerError, link_pack

IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 3, "color": 255}}
VIDEO = {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8}}
SAVE = {
    "class_type": "SaveVideo",
    "inputs": {"video": ["2", 0], "filename_prefix": "harness/red", "format": "mp4", "codec": "h264"},
    "_meta": {"title": "Red clip"},
}


def prompt(image: dict | None = None, save: dict | None = None) -> dict:
    """A red clip, with some inputs changed."""
    return {
        "1": {**IMAGE, "inputs": {**IMAGE["inputs"], **(image or {})}},
        "2": VIDEO,
        "3": {**SAVE, "inputs": {**SAVE["inputs"], **(save or {})}},
    }


async def test_a_run_reports_progress_and_files(server: Server):
    seen: list[Progress] = []
    run = await run_prompt(server, prompt(image={"color": 0xFF0000}), seen.append)
    assert [step.node for step in seen if step.value == 0] == ["1", "2", "3"]
    assert seen[-1].title == "Red clip"
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    (file,) = run.files
    assert file.parent == server.base / "output" / "harness"
    assert file.stat().st_size > 0


async def test_a_refused_input_is_named(server: Server):
    with pytest.raises(PromptError, match=r"node 1, EmptyImage\): Value 0 smaller than min of 1: width"):
        await run_prompt(server, prompt(image={"width": 0}))


async def test_half_a_workflow_is_no_success(server: Server):
    sound = {"4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    with pytest.raises(PromptError, match=r"Red clip \(node 3, SaveVideo\): Value not in list"):
        await run_prompt(server, {**prompt(save={"format": "avi"}), **sound})


async def test_a_failing_node_is_named(server: Server):
    with pytest.raises(PromptError, match=r"Red clip \(node 3, SaveVideo\) failed: .*outside the output folder"):
        await run_prompt(server, prompt(save={"filename_prefix": "../../outside"}))


@pytest.mark.comfy
def test_a_server_that_ends_says_why(tmp_path: Path):
    broken = Server(Path(os.environ["COMFYUI_PATH"]), tmp_path, options=["--no-such-option"])
    with pytest.raises(ServerError, match=r"ended \(exit code 2\)[\s\S]*--no-such-option"), broken:
        pytest.fail("it started")
    assert broken.process is None


def test_no_comfyui_is_a_sentence(tmp_path: Path):
    with pytest.raises(ServerError, match=r"set COMFYUI_PATH to a folder that holds its main\.py"):
        Server(tmp_path, tmp_path / "base").start()


def test_link_is_renewed_but_never_replaces_a_folder(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert link_pack(tmp_path, "pack", first).resolve() == first
    assert link_pack(tmp_path, "pack", second).resolve() == second
    (tmp_path / "custom_nodes" / "own").mkdir()
    with pytest.raises(ServerError, match="folder of its own"):
        link_pack(tmp_path, "own", first)
