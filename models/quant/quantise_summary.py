"""What was quantised, in numbers and as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "interspatial_quantised"  # in the metadata of a file
WORST = 5  # layers that are named


@dataclass(frozen=True)
class LayerDone:
    """choice: "vidit_q 4"    weights: how many    before, after: bytes    error: relative L2 of the weight"""

    choice: str
    weights: int
    before: int
    after: int
    error: float


@dataclass(frozen=True)
class Summary:
    """layers: in the order of blocks    size: bytes of the file    reused: it was there from an earlier run"""

    path: Path
    layers: Mapping[str, LayerDone]
    size: int
    reused: bool = False

    @property
    def before(self) -> int:
        """Bytes of the quantised layers' weights in the source."""
        return sum(done.before for done in self.layers.values())

    @property
    def after(self) -> int:
        """The same in the file, with scales and tables."""
        return sum(done.after for done in self.layers.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean over the quantised layers, with scales and tables."""
        return 8 * self.after / max(1, sum(done.weights for done in self.layers.values()))

    def by_choice(self) -> dict[str, list[LayerDone]]:
        """Layers by how they are kept."""
        found: dict[str, list[LayerDone]] = {}
        for done in self.layers.values():
            found.setdefault(done.choice, []).append(done)
        return dict(sorted(found.items()))

    def lines(self) -> list[str]:
        """A table by choice, and the layers that lost most."""
        rows = [("kept as", "layers", "before", "after", "bits a weight", "error")]
        for choice, layers in self.by_choice().items():
            rows.append((choice, *_cells(layers)))
        if len(rows) > 2:
            rows.append(("all", *_cells(list(self.layers.values()))))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        worst = sorted(self.layers.items(), key=lambda item: -item[1].error)[:WORST]
        return [
            f"{self.path.name}: {_size(self.size)}{', from an earlier run' if self.reused else ''}", *table,
            "largest errors of the weight: " + ", ".join(f"{name} {100 * done.error:.2f} %" for name, done in worst),
        ]  # fmt: skip


def _cells(layers: list[LayerDone]) -> tuple[str, ...]:
    weights, after = sum(done.weights for done in layers), sum(done.after for done in layers)
    error = sum(done.error * done.weights for done in layers) / max(1, weights)
    return (str(len(layers)), _size(sum(done.before for done in layers)), _size(after),
            f"{8 * after / max(1, weights):.2f}", f"{100 * error:.2f} %")  # fmt: skip


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
