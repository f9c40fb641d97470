"""What a meter has found, as rows of a table, in words, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .attention_error import MODEL, Findings, Record
from .candidates import asked


@dataclass(frozen=True)
class Row:
    """A candidate over all measured calls. worst: error of the worst head of any call    others: means"""

    name: str
    asked: float | None
    error: float
    worst: float
    recall: float | None
    density: float | None
    kept: float | None
    calls: int


def rows_of(found: Findings) -> list[Row]:
    """One row for each candidate, in the order in which they were measured; what the model does comes first."""
    groups: dict[tuple[str, float | None], list[Record]] = {}
    for record in found.records:
        groups.setdefault((record.name, record.asked), []).append(record)
    return [_row(name, asked, records) for (name, asked), records in groups.items()]


def _row(name: str, asked: float | None, records: list[Record]) -> Row:
    worst = max(error for record in records for error in record.errors)
    means = (_mean(getattr(record, field) for record in records) for field in ("error", "recall", "density", "kept"))
    error, recall, density, kept = means
    return Row(name, asked, error, worst, recall, density, kept, len(records))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def describe(found: Findings, rows: int) -> list[str]:
    """What was measured, and who stood aside. rows: of each call that were computed exactly"""
    frames, height, width = found.grid
    steps, layers = (sorted({getattr(record, name) for record in found.records}) for name in ("step", "layer"))
    aside = [f"{name} stood aside: {reason} ({count})" for (name, reason), count in found.reasons.most_common()]
    return [
        f"{frames} x {height} x {width} video tokens, {found.tokens} in all, {found.heads} heads; "
        f"{min(rows, frames * height * width)} rows of each call exact",
        f"step {_numbers(steps)} of {found.steps}, layer {_numbers(layers)} of {found.layers}, both from 0",
        *aside,
    ]


def _numbers(values: Sequence[int]) -> str:
    if len(values) > 8 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))


def as_text(rows: Sequence[Row]) -> list[str]:
    """The table, as lines with bars between the columns."""
    head = ("method", "density asked", "density", "kept", "error", "worst head", "recall")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in cells]  # fmt: skip
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cells(row: Row) -> tuple[str, ...]:
    if row.name == MODEL:
        return row.name, "", "", "", f"{row.error:.4f}", f"{row.worst:.4f}", ""
    return (
        row.name, asked(row.asked), f"{row.density:.3f}", f"{row.kept:.3f}", f"{row.error:.4f}", f"{row.worst:.4f}",
        f"{row.recall:.3f}",
    )  # fmt: skip


def as_json(found: Findings) -> str:
    """Every record, with the errors and recalls of each head."""
    sizes = {"grid": found.grid, "tokens": found.tokens, "heads": found.heads, "steps": found.steps,
             "layers": found.layers}  # fmt: skip
    reasons = [{"method": name, "reason": reason, "calls": n} for (name, reason), n in found.reasons.items()]
    return json.dumps({**sizes, "records": [asdict(record) for record in found.records], "aside": reasons})
