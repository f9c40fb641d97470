"""The nodes as users and saved graphs know them: a snapshot of every schema, and what each node owes its user.

INTERSPATIAL_UPDATE_SCHEMA=1 writes tests/schema.json anew. A changed id, input, type or output order breaks saved
graphs.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from interspatial.devtools import ROOT
from interspatial.devtools.convert import load, workflow_paths

SNAPSHOT = Path(__file__).parent / "schema.json"
UPDATE = "INTERSPATIAL_UPDATE_SCHEMA"
PREFIX = "Interspatial"
JOBS = {"speed", "memory", "control", "motion", "edit", "compose", "long video", "measure", "sources", "devices"}
FILES = (".safetensors", ".json")      # what other tests have written into the models folder is no part of a schema
SHIPPED = {path.name for path in (ROOT / "checkpoints").rglob("*")}
KEPT = ("display_name", "category", "output_node", "deprecated", "experimental", "dev_only")
TEXTS = {"tooltip", "placeholder", "display_name"}      # wording may change freely: it breaks no graph
MOST_REQUIRED = 3


@pytest.fixture(scope="session")
def ours(object_info: dict) -> dict[str, dict]:
    """/object_info of our nodes, by id."""
    return {key: info for key, info in sorted(object_info.items()) if key.startswith(PREFIX)}


def each_input(definitions: dict, prefix: str = "") -> Iterator[tuple[str, str, list]]:
    """section, dotted name and spec of every input, those inside dynamic combos included."""
    for section in ("required", "optional"):
        for name, spec in (definitions.get(section) or {}).items():
            yield section, prefix + name, spec
            for option in spec[1].get("options", []) if len(spec) > 1 else []:
                if isinstance(option, dict):
                    yield from each_input(option["inputs"], f"{prefix}{name}.{option['key']}.")


def frozen(info: dict) -> dict:
    """The part of a schema that saved graphs rely on."""
    inputs = {}
    for section, name, spec in each_input(info["input"]):
        options = {key: value for key, value in (spec[1] if len(spec) > 1 else {}).items() if key not in TEXTS}
        if isinstance(options.get("options"), list):      # a dynamic combo: its inputs have entries of their own
            names = [o["key"] if isinstance(o, dict) else o for o in options["options"]]
            options["options"] = [name for name in names if not str(name).endswith(FILES) or name in SHIPPED]
        inputs[name] = {"section": section, "type": spec[0], **options}
    outputs = [f"{name}: {kind}" for name, kind in zip(info["output_name"], info["output"], strict=True)]
    return {**{key: info[key] for key in KEPT}, "inputs": inputs, "outputs": outputs}


def test_schemas_match_the_snapshot(ours: dict):
    text = json.dumps({key: frozen(info) for key, info in ours.items()}, indent=1) + "\n"
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text(text, encoding="utf-8")
    before = SNAPSHOT.read_text(encoding="utf-8") if SNAPSHOT.exists() else ""
    diff = difflib.unified_diff(before.splitlines(), text.splitlines(), "tests/schema.json", "now", lineterm="", n=4)
    changes = "\n".join(diff)
    if changes:
        pytest.fail(f"node schemas changed; {UPDATE}=1 accepts this:\n{changes}", pytrace=False)


def test_every_class_is_ours_and_named(object_info: dict):
    from_pack = {key for key, info in object_info.items() if info["python_module"].startswith("custom_nodes.")}
    assert from_pack, "the pack did not load: see the server's log"
    assert all(key.startswith(PREFIX) for key in from_pack)


def test_every_node_explains_itself(ours: dict):
    complaints = [f"{key}: {complaint}" for key, info in ours.items() for complaint in shortcomings(key, info)]
    assert not complaints, "\n".join(complaints)


def shortcomings(key: str, info: dict) -> Iterator[str]:
    """What the node `key` owes its user, one sentence each."""
    root, _, job = info["category"].partition("/")
    if root != "interspatial" or job not in JOBS:
        yield f"category {info['category']!r} is none of interspatial/{sorted(JOBS)}"
    if not (info["description"] or "").strip():
        yield "no description"
    if not info["display_name"] or info["display_name"] == key:
        yield "no display name in plain words"
    if not info.get("search_aliases"):
        yield "no search aliases"
    required = list(info["input"].get("required") or {})
    if len(required) > MOST_REQUIRED:
        yield f"{len(required)} required inputs {required}, at most {MOST_REQUIRED} are allowed"
    for _, name, spec in each_input(info["input"]):
        if not (len(spec) > 1 and spec[1].get("tooltip", "").strip()):
            yield f"input {name} has no tooltip"
    page = ROOT / "web" / "docs" / f"{key}.md"
    if not page.exists() or len(page.read_text(encoding="utf-8")) < 200:
        yield f"no help page {page.relative_to(ROOT)}"


def test_help_pages_belong_to_nodes(ours: dict):
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    assert pages <= ours.keys(), "help pages of nodes that do not exist"


def test_help_page_is_served(ours: dict, server: object):
    for key in ours:
        assert server.get(f"/extensions/interspatial/docs/{key}.md").startswith(b"#")


def test_every_node_appears_in_a_workflow(ours: dict):
    used = {node["type"] for path in workflow_paths() for node in load(path)["nodes"]}
    assert ours.keys() <= used, "nodes that no workflow shows"
