"""Rows of a bench by their name, in a JSON file that is written as they come: a later run goes on where one ended."""

from __future__ import annotations

import json
from pathlib import Path

import torch


class Results:
    """method: how the rows were made    settings: what a reader needs to know beside"""

    def __init__(self, path: Path, method: str, **settings) -> None:
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {"rows": {}}
        self.content.update(method=method, settings={**settings, "torch": torch.__version__})

    @property
    def rows(self) -> dict:
        return self.content["rows"]

    def put(self, name: str, row: dict) -> None:
        """Add to a row, or begin it."""
        self.rows.setdefault(name, {}).update(row)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
        print(name, {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
