"""What the texts say is so: help pages name the schema's inputs, README and the rest point at what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from interspatial.models.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "tests" / "schema.json").read_text(encoding="utf-8"))
HELP_PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
FRONT = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
TEXTS = [*FRONT, *HELP_PAGES, *sorted((ROOT / ".github").rglob("*.md"))]

SECTIONS = ("Inputs", "Outputs", "When to use", "What it costs", "Works with / not with")
SHOWN_TYPES = {"COMFY_DYNAMICCOMBO_V3": "COMBO"}      # a user sees an ordinary list
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE_FILE = re.compile(r"[\w./-]+\.py\b")
TRAINER = re.compile(r"-m (training\.\w+)")
MACHINE_PATH = re.compile(r"(?<![\w.>])/(?:etc|home|mnt|opt|root|srv|tmp|usr|var|work|Users|Volumes)/|[A-Z]:\\")

each_page = pytest.mark.parametrize("page", HELP_PAGES, ids=lambda page: page.stem)
each_text = pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.relative_to(ROOT).as_posix())


def tables(page: Path, section: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Prefix and cells by column name of every table row with a type, in one section of a help page.

    A table under `### method draft` holds the inputs of that choice; their names begin with `method.draft.`.
    """
    body = re.split(rf"^## {section}$", page.read_text(encoding="utf-8"), flags=re.M)[1].split("\n## ")[0]
    for part in re.split(r"^### ", f"\n{body}", flags=re.M):
        prefix = "" if part.startswith("\n") else ".".join(part.splitlines()[0].split()) + "."
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        if rows and "type" in rows[0]:
            yield from ((prefix, dict(zip(rows[0], row, strict=True))) for row in rows[2:])


def schema_of(page: Path) -> dict:
    assert page.stem in SCHEMA, "no such node in tests/schema.json: INTERSPATIAL_UPDATE_SCHEMA=1 writes it anew"
    return SCHEMA[page.stem]


def wrong_range(said: str, spec: dict) -> str | None:
    """Why the range column of an input does not fit its schema, or None.

    Numbers say "0.02 to 1, default 0.3", choices "tile, cube; default tile". Files depend on the machine.
    """
    kind, options = spec["type"], spec.get("options", [])
    if kind in ("INT", "FLOAT"):
        found = re.fullmatch(r"(-?[\d.]+) to ([\d.]+), default (-?[\d.]+)", said)
        wanted = [spec[key] for key in ("min", "max", "default")]
        return None if found and [float(number) for number in found.groups()] == wanted else f"{wanted} in the schema"
    choices, _, default = said.partition("default ")
    if default and default != spec.get("default"):
        return f"default {spec.get('default')!r} in the schema"
    files = all("." in option for option in options) or any(option.endswith(".safetensors") for option in options)
    if kind in ("COMBO", "COMFY_DYNAMICCOMBO_V3") and not files:
        if re.split(", ", choices.rstrip("; ")) != options:
            return f"choices {options} in the schema"
        if "default" in spec and not default:
            return f"no default, {spec['default']!r} in the schema"
    return None


@each_page
def test_help_page_names_the_inputs_of_its_node(page: Path):
    inputs, complaints = schema_of(page)["inputs"], []
    rows = {prefix + row["name"]: row for prefix, row in tables(page, "Inputs")}
    assert list(rows) == sorted(inputs, key=lambda name: "." in name), "in order, those of a choice behind the others"
    for name, row in rows.items():
        spec = inputs[name]
        if row["type"] != SHOWN_TYPES.get(spec["type"], spec["type"]):
            complaints.append(f"{name}: type {row['type']}, {spec['type']} in the schema")
        if row["required"] != ("yes" if spec["section"] == "required" else "no"):
            complaints.append(f"{name}: required {row['required']}, {spec['section']} in the schema")
        if reason := wrong_range(row["range"], spec):
            complaints.append(f"{name}: range {row['range']!r}, {reason}")
    assert not complaints, "\n".join(complaints)


@each_page
def test_help_page_names_the_outputs_of_its_node(page: Path):
    rows = [f"{row['name'].lower()}: {row['type'].split(',')[0]}" for _, row in tables(page, "Outputs")]
    # An output without a name of its own is called after its type.
    assert rows == [name.lower() + kind for name, kind in (re.split("(?=: )", o) for o in schema_of(page)["outputs"])]


@each_page
def test_help_page_has_its_form(page: Path):
    text = page.read_text(encoding="utf-8")
    title, sentence = text.splitlines()[0], text.splitlines()[2]
    assert title == f"# {schema_of(page)['display_name']}"
    assert sentence[:1].isupper(), "one sentence follows the title"
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)


def test_a_wrong_range_is_seen():
    number = {"type": "FLOAT", "min": 0.02, "max": 1.0, "default": 0.3}
    choice = {"type": "COMBO", "options": ["tile", "cube"], "default": "tile"}
    assert wrong_range("0.02 to 1, default 0.3", number) is None
    assert wrong_range("0.02 to 1, default 0.2", number) and wrong_range("", number)
    assert wrong_range("tile, cube; default tile", choice) is None
    assert wrong_range("tile; default tile", choice) and wrong_range("tile, cube", choice)
    assert wrong_range("tile, cube; default cube", choice)
    assert wrong_range("any file", {"type": "COMBO", "options": ["tiny.safetensors"]}) is None


@each_text
def test_links_lead_to_files(text: Path):
    targets = [link.partition("#")[0] for link in LINK.findall(text.read_text(encoding="utf-8")) if "://" not in link]
    missing = [target for target in targets if target and not (text.parent / target).exists()]
    assert not missing, f"{text.name} links to what is not there: {missing}"


@each_text
def test_named_sources_exist(text: Path):
    content = text.read_text(encoding="utf-8")
    named = {name for name in SOURCE_FILE.findall(re.sub(r"\S*<\w+>\S*", "", content)) if "/" in name}
    named |= {module.replace(".", "/") + ".py" for module in TRAINER.findall(content)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@each_text
def test_no_path_of_a_machine(text: Path):
    assert MACHINE_PATH.findall(text.read_text(encoding="utf-8")) == []


def test_readme_names_every_node():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\[([^\]]+)\]\(web/docs/(\w+)\.md\)", readme)
    assert {key: name for name, key in rows} == {key: node["display_name"] for key, node in SCHEMA.items()}


def test_readme_names_every_family():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Works with")[1].split("\n## ")[0]
    cells = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(family.name for family in FAMILIES)
