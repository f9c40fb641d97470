"""Every workflow in the real frontend: opens without red nodes, looks tidy, runs from its button, shows the result.

Screenshots go to the folder of pytest's temporary files; INTERSPATIAL_SCREENSHOTS names another.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from itertools import combinations
from pathlib import Path

import pytest
from interspatial.devtools.browser import load_workflow, open_frontend, queue_and_wait
from interspatial.devtools.convert import api_path, load, workflow_paths
from interspatial.devtools.server import Server

TITLE = 30      # pixels of a node's title bar, above its position
RENDERERS = {"canvas": False, "nodes2": True}      # the frontend's setting Comfy.VueNodes.Enabled
SHOWN = """(file) => {
    const wanted = [...document.querySelectorAll("video, img")].filter(e => decodeURIComponent(e.src).includes(file));
    return wanted.some(e => (e.videoWidth ?? e.naturalWidth) > 0 && (e.tagName === "IMG" || e.readyState >= 2));
}"""

each_workflow = pytest.mark.parametrize("path", workflow_paths(), ids=lambda path: path.stem)


@pytest.fixture(scope="module", params=RENDERERS)
async def page(request: pytest.FixtureRequest, browser: object, server: Server) -> AsyncIterator[object]:
    """The frontend, once with each of its two node renderers."""
    opened = await open_frontend(browser, server, **{"Comfy.VueNodes.Enabled": RENDERERS[request.param]})
    opened.renderer = request.param
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("INTERSPATIAL_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


def overlaps(a: dict, b: dict) -> bool:
    """Whether two nodes, title bars included, cover a common pixel."""
    left_a, top_a, right_a, bottom_a = edges(a)
    left_b, top_b, right_b, bottom_b = edges(b)
    return left_a < right_b and left_b < right_a and top_a < bottom_b and top_b < bottom_a


def edges(node: dict) -> tuple[float, float, float, float]:
    """left, top, right, bottom of a node with its title bar, in canvas pixels."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def sticks_out(node: dict, group: list[float]) -> bool:
    """Whether a node begins in the group (left, top, width, height) and ends outside of it."""
    left, top, width, height = group
    node_left, node_top, node_right, node_bottom = edges(node)
    begins = left <= node_left <= left + width and top <= node_top <= top + height
    return begins and (node_right > left + width or node_bottom > top + height)


@each_workflow
async def test_opens_tidily(path: Path, page: object, screenshots: Path):
    problems = await load_workflow(page, load(path))
    await page.screenshot(path=screenshots / f"{path.stem}_{page.renderer}.png")
    assert not problems, f"the frontend complains: {problems}"
    graph = await page.evaluate(
        """() => ({
            nodes: app.graph.nodes.map(n => ({title: n.title, pos: [...n.pos], size: [...n.size]})),
            groups: app.graph.groups.map(g => [...g.pos, ...g.size]),
        })"""
    )
    assert len(graph["nodes"]) == len(load(path)["nodes"])
    crossing = [(a["title"], b["title"]) for a, b in combinations(graph["nodes"], 2) if overlaps(a, b)]
    assert not crossing, "nodes lie on top of each other"
    out = [node["title"] for node in graph["nodes"] for group in graph["groups"] if sticks_out(node, group)]
    assert not out, "nodes stick out of their group"


@each_workflow
async def test_queues_what_the_api_form_says(path: Path, page: object):
    await load_workflow(page, load(path))
    queued = json.loads(await page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    assert queued == load(api_path(path))


@each_workflow
async def test_runs_and_shows_the_result(path: Path, page: object, screenshots: Path):
    await load_workflow(page, load(path))
    error = await queue_and_wait(page)
    assert error is None
    outputs = await page.evaluate("() => app.nodeOutputs")
    savers = [str(node["id"]) for node in load(path)["nodes"] if node["type"] == "SaveVideo"]
    assert savers
    for key in savers:
        for file in outputs[key]["images"]:
            await page.wait_for_function(SHOWN, arg=file["filename"], timeout=60_000)
    await page.screenshot(path=screenshots / f"{path.stem}_{page.renderer}_done.png")
