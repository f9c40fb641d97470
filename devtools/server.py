"""A real ComfyUI server with this pack in it: started on entry, stopped on exit, whatever happens in between."""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import ROOT

PACK = "interspatial"      # folder name under custom_nodes; the checkout itself may have any name
START_SECONDS = 180.0      # 10 s on an idle machine, 40 s on one busy core
STOP_SECONDS = 10.0
LOG_TAIL = 30              # lines shown when something goes wrong


class ServerError(RuntimeError):
    """The server did not start, died, or answered with an error."""


class Server:
    """ComfyUI at `comfyui`, on the CPU, with `base` as its base directory and only our pack as custom node.

    Use it as a context manager. `options` are appended to ComfyUI's command line, `packs` maps further custom node
    folder names to their sources. The log is `base/server.log`.
    """

    def __init__(self, comfyui: Path, base: Path, *, options: Iterable[str] = (), packs: dict[str, Path] | None = None):
        self.comfyui = Path(comfyui).resolve()
        self.base = Path(base).resolve()
        self.options = tuple(options)
        self.packs = {PACK: ROOT, **(packs or {})}
        self.log = self.base / "server.log"
        self.port = 0
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:      # Ctrl-C while waiting must not leave a server behind
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers. Raises ServerError with the end of the log."""
        if not (self.comfyui / "main.py").is_file():
            raise ServerError(f"No ComfyUI at {self.comfyui}: set COMFYUI_PATH to a folder that holds its main.py.")
        self.base.mkdir(parents=True, exist_ok=True)
        for name, source in self.packs.items():
            link_pack(self.base, name, source)
        self.port = free_port()
        # One core stays free: with a busy neighbour OpenMP's threads wait for each other, 20 times slower on two cores.
        environment = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(max(1, core_count() - 1)), **os.environ}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.comfyui, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT,
            )
        atexit.register(self.stop)
        self.wait_until_ready()

    def command(self) -> list[str]:
        return [
            sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base), "--disable-api-nodes", "--disable-all-custom-nodes",
            "--whitelist-custom-nodes", *self.packs,
            "--database-url", "sqlite:///:memory:",      # a file would lock out a second server on the same base
            "--dont-print-server", "--disable-auto-launch", *self.options,
        ]

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                self.get("/system_stats")
                return
            except ServerError:
                time.sleep(0.1)
        raise ServerError(f"ComfyUI did not answer within {START_SECONDS:.0f} s. {self.log_tail()}")

    def check_alive(self) -> None:
        """Raises ServerError when the process has ended by itself."""
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise ServerError(f"The ComfyUI server ended (exit code {code}). {self.log_tail()}")

    def stop(self) -> None:
        """End the process; safe to call twice."""
        atexit.unregister(self.stop)
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return f"Its log is {self.log} and ends with:\n" + "\n".join(lines[-LOG_TAIL:])

    def get(self, path: str) -> Any:
        """GET `path`: parsed JSON, or bytes when the answer is not JSON. Raises ServerError."""
        return self._request(urllib.request.Request(self.url + path))

    def post(self, path: str, body: dict) -> Any:
        """POST `body` as JSON. Raises ServerError with the server's answer."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._request(urllib.request.Request(self.url + path, data=data, headers=headers))

    def _request(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")
            raise ServerError(f"{request.get_method()} {request.selector}: HTTP {error.code}: {answer}") from error
        except OSError as error:
            raise ServerError(f"{request.get_method()} {request.selector}: {error}") from error
        try:
            return json.loads(body)
        except ValueError:
            return body


@contextmanager
def server_from_environment(options: Iterable[str] = ()) -> Iterator[Server]:
    """A server of the ComfyUI at COMFYUI_PATH with the base directory INTERSPATIAL_BASE, or a temporary one."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        raise ServerError("COMFYUI_PATH is not set: give it the folder of a ComfyUI checkout (the one with main.py).")
    base = os.environ.get("INTERSPATIAL_BASE")
    with ExitStack() as stack:
        folder = base or stack.enter_context(tempfile.TemporaryDirectory(prefix="interspatial-"))
        yield stack.enter_context(Server(Path(comfyui), Path(folder), options=options))


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def core_count() -> int:
    """Cores that this process may use; the machine may have more."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def link_pack(base: Path, name: str, source: Path) -> Path:
    """Make `base/custom_nodes/name` a link to `source`. Raises ServerError when something else is in its place."""
    link = base / "custom_nodes" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        if link.resolve() == source.resolve():
            return link
        link.unlink()
    if link.exists():
        raise ServerError(f"{link} is a folder of its own, not a link to {source}. Move it away and try again.")
    link.symlink_to(source.resolve(), target_is_directory=True)
    return link
