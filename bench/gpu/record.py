"""results.json and results.md: what stages left, on which machine, and how each ended. Whole at any time."""

from __future__ import annotations

import json
from pathlib import Path

from . import table

FAILED = "failed"


class Record:
    """content: device, smoke, machines (facts of each), stages: name -> method, rows, runs

    A run of a stage: when it began, seconds, how it ended, rows then, clocks, and which of the machines.
    """

    def __init__(self, folder: Path, device: str, smoke: bool) -> None:
        """Raises ValueError when the folder holds figures of another kind."""
        self.folder = folder
        path = folder / "results.json"
        kind = {"device": device, "smoke": smoke}
        self.content = json.loads(path.read_text()) if path.exists() else {**kind, "machines": [], "stages": {}}
        there = {name: self.content[name] for name in kind}
        if there != kind:
            raise ValueError(f"{path} holds results of {there}, and this run is {kind}: give another --out.")

    def stage(self, name: str) -> dict:
        return self.content["stages"].setdefault(name, {"method": "", "rows": [], "runs": []})

    def ended(self, name: str) -> str | None:
        """How the last run of a stage ended; None before the first."""
        runs = self.stage(name)["runs"]
        return runs[-1]["ended"] if runs else None

    def has_failed_rows(self, name: str) -> bool:
        return any(FAILED in row for row in self.stage(name)["rows"])

    def machine(self, facts: dict) -> int:
        """Number of this machine among those that measured."""
        if facts not in self.content["machines"]:
            self.content["machines"].append(facts)
        return self.content["machines"].index(facts)

    def save(self) -> None:
        texts = {"results.json": json.dumps(self.content, indent=1), "results.md": table.page(self.content)}
        for name, text in texts.items():
            part = self.folder / f"{name}.part"
            part.write_text(text + "\n")
            part.replace(self.folder / name)
