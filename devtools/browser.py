"""The real frontend in a headless Chromium that is already on the machine: nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

    from .server import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
FLAGS = (
    "--no-sandbox",      # containers and CI runners forbid the sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",      # /dev/shm is tiny in containers
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--mute-audio",
    "--no-first-run",
)

SETTINGS = {
    "Comfy.TutorialCompleted": True,      # without it the first page opens the template gallery over the graph
    "Comfy.Minimap.Visible": False,      # it covers a corner of the graph on screenshots
}
READY = "window.app?.vueAppReady && window.app.extensionManager && !document.querySelector('#splash-loader')"
LOAD_SECONDS = 120.0      # 9 s on an idle core
SCREEN = {"width": 1600, "height": 900}
SETTLE_MILLISECONDS = 800      # the fit-view animation and the first layout of the nodes
COMPLAINTS = """() => [
    ...app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => `unknown node ${n.type}`),
    ...[...document.querySelectorAll("[role=dialog], .p-dialog, .p-toast-message-error")].map(e => e.innerText),
]"""
QUEUE = """() => new Promise(async (resolve) => {
    app.api.addEventListener("execution_success", () => resolve(null), {once: true});
    app.api.addEventListener("execution_error", (e) => resolve(`${e.detail.node_type}: ${e.detail.exception_message}`),
        {once: true});
    const queued = await app.queuePrompt(0);
    const errors = app.lastNodeErrors ?? {};
    // Errors beside a queued prompt: only its sound half runs.
    if (!queued || Object.keys(errors).length) resolve("refused: " + JSON.stringify(errors));
})"""


def executable() -> str | None:
    """The browser: CHROMIUM_PATH when set, else the first of NAMES on the PATH."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)


def why_not() -> str | None:
    """None, or why the frontend cannot be opened here."""
    if executable() is None:
        return "no Chromium on the PATH (CHROMIUM_PATH may name one)"
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed"
    return None


@asynccontextmanager
async def launch() -> AsyncIterator[Browser]:
    """A Chromium, closed at the end."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        try:
            yield chromium
        finally:
            await chromium.close()


async def open_frontend(browser: Browser, server: Server, **settings: object) -> Page:
    """A page of a fresh profile with ComfyUI's frontend, ready for a workflow. The caller closes it.

    settings: the frontend's own, on top of SETTINGS; the server keeps them.
    """
    server.post("/settings", {**SETTINGS, **settings})
    page = await browser.new_page(viewport=SCREEN)
    await page.goto(server.url, wait_until="domcontentloaded")
    await page.wait_for_function(READY, timeout=LOAD_SECONDS * 1000)
    return page


async def load_workflow(page: Page, workflow: dict) -> list[str]:
    """Open a graph file's content and fit it into view. Returns what the frontend complains about, by class or text."""
    await page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    await page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    await page.wait_for_timeout(SETTLE_MILLISECONDS)
    return await page.evaluate(COMPLAINTS)


async def queue_and_wait(page: Page) -> str | None:
    """Press Run and wait for the end. Returns None, or what failed."""
    return await page.evaluate(QUEUE)
