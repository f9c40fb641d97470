"""A training curve: one CSV line every so often, and the same on the terminal."""

from __future__ import annotations

import csv
from pathlib import Path


class Curve:
    """Appends rows of named numbers to a CSV file."""

    def __init__(self, path: Path):
        self.path = path
        self.fresh = not path.exists()

    def add(self, **row: float) -> None:
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if self.fresh:
                writer.writeheader()
                self.fresh = False
            writer.writerow(row)
        print("  ".join(f"{k} {v:.5g}" for k, v in row.items()), flush=True)
