"""Rows of stages as Markdown. Every figure is in results.json; here it is rounded, and a list shows its range."""

from __future__ import annotations

from collections import Counter

from . import bars

LONGEST = 160  # characters of a cell
FAILED = "failed"


def page(content: dict) -> str:
    """content: of Record"""
    lines = ["# Speed on a GPU", ""]
    if content["smoke"]:
        lines += ["Tiny sizes, to show that everything runs: **the times below mean nothing**.", ""]
    lines += ["## Done means", "", *bars.lines(content), "", "## Machine", "", *machines(content["machines"]), "",
              "## Stages", "", *stages(content["stages"])]  # fmt: skip
    for name, stage in content["stages"].items():
        method = stage["method"] or "(It did not come to say its method.)"
        lines += ["", f"## {name}", "", method, "", *rows(stage["rows"])]
    return "\n".join(lines)


def grid(head: list[str], body: list[list[object]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in body)]
    return [f"| {' | '.join(line)} |" for line in lines]


def cell(value: object) -> str:
    """A figure, rounded to what its size makes meaningful; a range of them; words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list) and value and all(type(x) in (int, float) for x in value):
        return number(value[0]) if len(value) == 1 else f"{number(min(value))} to {number(max(value))} ({len(value)})"
    if isinstance(value, list):
        counts = Counter(map(str, value))
        return ", ".join(f"{count} {word}" if count > 1 else word for word, count in counts.items())
    text = " ".join(str(value).replace("|", "\\|").split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def number(value: float) -> str:
    """Four significant digits, and no exponent for what people write without one."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def rows(found: list[dict]) -> list[str]:
    """A table for every kind of row (those with the same columns), then one of what failed."""
    kinds: dict[tuple, list[dict]] = {}
    for row in found:
        if FAILED not in row:
            kinds.setdefault(tuple(row), []).append(row)
    lines = []
    for head, group in kinds.items():
        lines += [*grid([*head], [[row[name] for name in head] for row in group]), ""]
    failed = [row for row in found if FAILED in row]
    if failed:
        head = [name for name in dict.fromkeys(name for row in failed for name in row) if name != FAILED] + [FAILED]
        lines += [*grid(head, [[row.get(name) for name in head] for row in failed]), ""]
    return lines[:-1] if lines else ["No rows."]


def machines(found: list[dict]) -> list[str]:
    """A column for each."""
    names = list(dict.fromkeys(name for facts in found for name in facts))
    if not names:
        return ["No stage came to ask."]
    return grid(["", *(str(i) for i in range(len(found)))],
                [[name, *(str(facts.get(name, "")) for facts in found)] for name in names])  # fmt: skip


def stages(found: dict[str, dict]) -> list[str]:
    """How each run of each stage ended, with least, median and greatest clock of the chip while it ran."""
    body = []
    for name, stage in found.items():
        failed = sum(FAILED in row for row in stage["rows"])
        counted = f"{len(stage['rows'])}, {failed} failed" if failed else str(len(stage["rows"]))
        for run in stage["runs"] or [{"ended": "not begun: no time was left"}]:
            during = run.get("clocks_during") or {}
            body.append([name, run["ended"], run.get("seconds"), counted, _three(during.get("sm_mhz")),
                         _three(during.get("watts")), _three(during.get("celsius")), run.get("began"),
                         run.get("machine"), (run.get("revision") or "")[:10]])  # fmt: skip
    head = ["stage", "ended", "seconds", "rows", "SM MHz", "watts", "celsius", "began", "machine", "revision"]
    return grid(head, body)


def _three(values: list[float] | None) -> str:
    return " / ".join(f"{value:.0f}" for value in values) if values else ""
