"""Keep the two forms of each workflow in step: `workflows/NN_name.json` is the truth, `workflows/api/` follows from it.

    python devtools/convert.py              say which API files are out of step
    python devtools/convert.py --write      write them anew
    python devtools/convert.py --sketch sketch.json workflows/NN_name.json      lay out a sketch, then write both forms

Needs comfy-cli, and COMFYUI_PATH: the widget order comes from the running server's /object_info.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

if not __package__:      # started as a file; relative imports need to know their package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "devtools"

from . import API_WORKFLOWS, ROOT, WORKFLOWS
from .layout_workflow import SketchError, workflow_from_sketch
from .server import Server, ServerError, server_from_environment


def workflow_paths() -> list[Path]:
    """The graph files, in the order of their numbers."""
    return sorted(WORKFLOWS.glob("*.json"))


def api_path(workflow: Path) -> Path:
    return API_WORKFLOWS / workflow.name


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def api_form(workflow: dict, object_info: dict) -> dict:
    """The API form, nodes in the order of their numbers, links with text ids.

    workflow: a graph file's content. object_info: the server's /object_info
    """
    from comfy_cli.workflow_to_api import convert_ui_to_api

    converted = convert_ui_to_api(workflow, object_info)
    return {key: converted[key] for key in sorted(converted, key=int)}


def to_text(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


def out_of_step(object_info: dict) -> dict[Path, dict]:
    """API files whose content differs from their graph file, with the content they should have."""
    wanted = {api_path(path): api_form(load(path), object_info) for path in workflow_paths()}
    return {path: api for path, api in wanted.items() if not path.exists() or load(path) != api}


def orphans() -> list[Path]:
    """API files without a graph file."""
    return sorted(set(API_WORKFLOWS.glob("*.json")) - {api_path(path) for path in workflow_paths()})


def pack_versions(server: Server) -> dict[str, str]:
    """Versions that go into a laid-out workflow, for the frontend's list of missing packs."""
    versions = {"comfy-core": server.get("/system_stats")["system"]["comfyui_version"]}
    project = ROOT / "pyproject.toml"
    # Not tomllib: Python 3.10 has none.
    if project.exists() and (found := re.search(r'^version = "(.+)"', project.read_text(encoding="utf-8"), re.M)):
        versions["interspatial"] = found[1]
    return versions


def write_sketch(sketch: Path, workflow: Path, server: Server) -> None:
    content = workflow_from_sketch(load(sketch), server.get("/object_info"), workflow.stem, pack_versions(server))
    workflow.write_text(to_text(content), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="devtools/convert.py", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the API files that are out of step")
    parser.add_argument("--sketch", nargs=2, type=Path, metavar=("SKETCH", "WORKFLOW"), help="lay out SKETCH first")
    options = parser.parse_args(arguments)
    try:
        with server_from_environment() as server:
            if options.sketch:
                write_sketch(*options.sketch, server)
            late = out_of_step(server.get("/object_info"))
    except (ServerError, SketchError) as error:
        print(error, file=sys.stderr)
        return 1
    write = options.write or bool(options.sketch)
    for path, content in late.items():
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(to_text(content), encoding="utf-8")
        print(f"{'written' if write else 'out of step'}: {path.relative_to(ROOT)}")
    for path in orphans():
        print(f"no workflow for {path.relative_to(ROOT)}: delete it")
    return 0 if write or not late else 1


if __name__ == "__main__":
    sys.exit(main())
