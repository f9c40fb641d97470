"""Every workflow that ships: both forms in step, only core nodes and ours, runs on the CPU, saves a playable video."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from interspatial.devtools.convert import api_form, api_path, load, orphans, workflow_paths
from interspatial.devtools.prompt import run_prompt
from interspatial.devtools.server import PACK, Server

FRONTEND_ONLY = {"MarkdownNote", "Note"}
REGENERATE = "run `python devtools/convert.py --write`"

each_workflow = pytest.mark.parametrize("path", workflow_paths(), ids=lambda path: path.stem)


def savers(api: dict) -> list[str]:
    """Ids of the nodes that save a video."""
    return [key for key, node in api.items() if node["class_type"] == "SaveVideo"]


def upstream(api: dict, key: str) -> list[dict]:
    """The node `key` and everything that feeds it."""
    seen: dict[str, dict] = {}
    waiting = [key]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen[current] = api[current]
            waiting += [v[0] for v in api[current]["inputs"].values() if isinstance(v, list) and len(v) == 2]
    return list(seen.values())


def said(nodes: list[dict], *names: str) -> set:
    """Every constant that one of `nodes` has for an input of one of these names."""
    values = (node["inputs"].get(name) for node in nodes for name in names)
    return {value for value in values if isinstance(value, int | float)}


@each_workflow
def test_named_by_number_and_pictured(path: Path):
    from PIL import Image

    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.json", path.name), f"{path.name}: workflows are named NN_plain_words.json"
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.exists(), f"{path.name} has no thumbnail: ComfyUI's template browser shows {thumbnail.name}"
    assert thumbnail.stat().st_size < 300_000
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 200


def test_no_api_form_without_a_workflow():
    assert orphans() == []


@each_workflow
def test_api_form_is_in_step(path: Path, object_info: dict):
    pytest.importorskip("comfy_cli", reason="comfy-cli converts the workflows")
    assert api_path(path).exists(), f"{path.name} has no API form: {REGENERATE}"
    assert load(api_path(path)) == api_form(load(path), object_info), f"{path.name} changed: {REGENERATE}"


@each_workflow
def test_only_core_nodes_and_ours(path: Path, object_info: dict):
    kinds = {node["type"] for node in load(path)["nodes"]} - FRONTEND_ONLY
    assert kinds <= object_info.keys(), "unknown here, where only core and this pack are loaded"
    modules = {object_info[kind]["python_module"] for kind in kinds}
    assert {module for module in modules if module.startswith("custom_nodes.")} <= {f"custom_nodes.{PACK}"}


@each_workflow
async def test_runs_and_saves_a_video(path: Path, server: Server):
    import av

    api = load(api_path(path))
    assert savers(api), "a workflow ends in SaveVideo"
    run = await run_prompt(server, api, workflow=load(path))
    for key in savers(api):
        feeding = upstream(api, key)
        (shown,) = run.outputs[key]["images"]
        file = run.output_folder / shown["subfolder"] / shown["filename"]
        assert file in run.files
        with av.open(str(file)) as container:
            (stream,) = container.streams.video
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert len(frames) >= 2
        assert len(frames) == stream.frames, "as many frames can be decoded as the file announces"
        assert any((frame != frames[0]).any() for frame in frames[1:]), "a video that never changes shows nothing"
        if lengths := said(feeding, "length", "frames"):
            assert len(frames) in lengths
        if rates := said(feeding, "fps", "frame_rate") - {0}:
            assert stream.average_rate in {Fraction(rate).limit_denominator(1001) for rate in rates}
        height, width = frames[0].shape[:2]
        for size, asked in ((width, said(feeding, "width")), (height, said(feeding, "height"))):
            # A multiple: clips may stand side by side.
            assert not asked or any(size % one == 0 for one in asked), f"{size} pixels, asked for {asked}"
    assert all(file.exists() and file.stat().st_size > 0 for file in run.files)
