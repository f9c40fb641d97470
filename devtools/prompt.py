"""One workflow in API form through a server: queued over HTTP, followed over its WebSocket, results as files."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from .server import Server, ServerError

SILENT_SECONDS = 300.0      # no message for this long: the run is stuck; the slowest single node here takes seconds


class PromptError(RuntimeError):
    """ComfyUI refused a workflow or a node of it failed; the message names the node."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: `value` of `total` steps of one node, `done` of `nodes` nodes finished, `seconds` so far."""

    node: str
    title: str
    value: float
    total: float
    done: int
    nodes: int
    seconds: float


@dataclass
class Run:
    """A finished run. `outputs`: what each output node showed, by node id, as in ComfyUI's history."""

    prompt_id: str
    seconds: float
    outputs: dict[str, dict]
    output_folder: Path
    files: list[Path] = field(init=False)
    texts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        shown = [entry for ui in self.outputs.values() for entries in ui.values() for entry in as_list(entries)]
        self.files = [
            self.output_folder / entry.get("subfolder", "") / entry["filename"]
            for entry in shown
            if isinstance(entry, dict) and entry.get("type") == "output" and "filename" in entry
        ]
        texts = [str(text) for ui in self.outputs.values() for text in as_list(ui.get("text", []))]
        self.texts = list(dict.fromkeys(texts))      # a report and the node that saves it show the same text


async def run_prompt(
    server: Server,
    prompt: dict,
    on_progress: Callable[[Progress], None] | None = None,
    workflow: dict | None = None,
) -> Run:
    """Run `prompt` to its end.

    prompt: API form. workflow: its UI form, stored in the saved files so that they open as a graph.
    Raises PromptError when a node refuses or fails, ServerError when the server dies or falls silent.
    """
    client = uuid.uuid4().hex
    started = time.monotonic()
    body = {"prompt": prompt, "client_id": client}
    if workflow is not None:
        body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
    async with aiohttp.ClientSession() as session, session.ws_connect(
        f"{server.url}/ws?clientId={client}", max_msg_size=0
    ) as socket:
        # The socket is open before the prompt is queued: a fast run would finish unseen otherwise.
        async with session.post(f"{server.url}/prompt", json=body) as response:
            answer = await response.json()
            # ComfyUI accepts a workflow of which one output is sound and drops the others; a half run is a failed one.
            if response.status != 200 or answer.get("node_errors"):
                raise PromptError(refusal(answer, prompt))
        await follow(server, socket, answer["prompt_id"], prompt, started, on_progress)
        async with session.get(f"{server.url}/history/{answer['prompt_id']}") as response:
            history = (await response.json())[answer["prompt_id"]]
    return Run(answer["prompt_id"], time.monotonic() - started, history["outputs"], server.base / "output")


async def follow(
    server: Server,
    socket: aiohttp.ClientWebSocketResponse,
    prompt_id: str,
    prompt: dict,
    started: float,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Read messages until the run has ended and its history is written."""
    finished: set[str] = set()
    while True:
        try:
            message = await socket.receive(SILENT_SECONDS)
        except asyncio.TimeoutError:      # the builtin TimeoutError only from Python 3.11 on
            raise ServerError(f"ComfyUI sent nothing for {SILENT_SECONDS:.0f} s. {server.log_tail()}") from None
        if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
            raise ServerError(f"ComfyUI closed the connection during a run. {server.log_tail()}")
        if message.type != aiohttp.WSMsgType.TEXT:      # previews are binary
            continue
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data") or {}
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "execution_error":
            raise PromptError(failure(data, prompt))
        if kind == "execution_interrupted":
            raise PromptError(f"The run was interrupted at {name_of(str(data.get('node_id')), prompt)}.")
        if kind == "execution_cached":
            finished.update(data["nodes"])
        if kind == "progress_state":
            report(data["nodes"], finished, prompt, started, on_progress)
        if kind == "executing" and data.get("node") is None:      # execution_success comes before the history exists
            return


def report(nodes: dict, finished: set[str], prompt: dict, started: float, on_progress: Callable | None) -> None:
    """Pass on the running node of a progress_state message."""
    finished.update(node for node, state in nodes.items() if state["state"] == "finished")
    if on_progress is None:
        return
    for node, state in nodes.items():
        if state["state"] == "running":
            title, seconds = name_of(node, prompt), time.monotonic() - started
            on_progress(Progress(node, title, state["value"], state["max"], len(finished), len(prompt), seconds))


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def name_of(node: str, prompt: dict) -> str:
    """The node's title as the user sees it, else its class."""
    entry = prompt.get(node, {})
    return entry.get("_meta", {}).get("title") or entry.get("class_type") or f"node {node}"


def failure(data: dict, prompt: dict) -> str:
    """An execution_error message as one sentence."""
    node = str(data.get("node_id"))
    kind, text = data.get("exception_type"), str(data.get("exception_message", "")).strip()
    return f"{name_of(node, prompt)} (node {node}, {data.get('node_type')}) failed: {kind}: {text}"


def refusal(answer: dict, prompt: dict) -> str:
    """The answer to a refused prompt as one line per complaint."""
    lines = [
        f"{name_of(node, prompt)} (node {node}, {entry.get('class_type')}): {error['message']}: {error['details']}"
        for node, entry in (answer.get("node_errors") or {}).items()
        for error in entry["errors"]
    ]
    error = answer.get("error") or {}
    if not lines:
        lines = [f"{error.get('message')}: {error.get('details')}" if isinstance(error, dict) else str(error)]
    return "ComfyUI refused the workflow. " + "\n".join(lines)
