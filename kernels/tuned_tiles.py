"""Tiles that were measured before: of cards that the pack ships figures of, and of this one in earlier sessions.

A table is {card: {kind: {"tile": {field: value}, "milliseconds": {tile in words: time}}}}. A kind is words such as
"attend bf16 128 row 64 64", without a length; only "tile" is read. The table that ships goes by the name of the card
alone; the user's file also by its architecture and by the versions that compiled for it. The stage "tuned" of bench/gpu
writes the entry of a card for `tuned_tiles.json`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("interspatial")

Table = dict[str, dict[str, dict]]
SHIPPED_FILE = Path(__file__).with_suffix(".json")
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", None: "none"}


@dataclass(frozen=True)
class Card:
    """name: as its driver states it    build: the name and everything else that a time depends on"""

    name: str
    build: str

    @classmethod
    @cache
    def of(cls, device: torch.device) -> Card:
        """Of a CUDA or ROCm device. Waits for nothing."""
        seen = torch.cuda.get_device_properties(device)
        made = getattr(seen, "gcnArchName", "") if torch.version.hip else f"{seen.major}.{seen.minor}"
        return cls(seen.name, f"{seen.name}, {made}, torch {torch.__version__}, triton {_triton()}")


def _triton() -> str:
    try:
        import triton
    except Exception as error:  # broken installs raise more than ImportError
        return type(error).__name__
    return triton.__version__


def word(value: object) -> str:
    """A part of a kind: bf16, row, 64, 5120x5120."""
    if isinstance(value, tuple):
        return "x".join(map(word, value))
    return NAMES.get(value) or str(value)


def in_words(tile: Any) -> str:
    """A tile for people: "M 64, N 64, warps 4, stages 3", and what else is not as usual."""
    told = [(one.name, value) for one in fields(tile) if (value := getattr(tile, one.name)) != one.default]
    return ", ".join(name if value is True else f"{name} {value}" for name, value in told)


def entry(tile: Any, times: Mapping[Any, float]) -> dict:
    """What a table holds of a kind. times: milliseconds of each tile that ran"""
    return {"tile": asdict(tile), "milliseconds": {in_words(one): round(time, 4) for one, time in times.items()}}


def among(found: dict | None, offered: list) -> Any | None:
    """The offered tile that an entry names; None for an entry that is older than what is offered."""
    wanted = found.get("tile") if isinstance(found, dict) else None
    return next((tile for tile in offered if asdict(tile) == wanted), None)


class TunedTiles:
    """The table that ships, and the user's file beside it.

    file: the user's; None: nothing is remembered. A file that cannot be read counts as empty and is written anew
    """

    def __init__(self, shipped: Path = SHIPPED_FILE, file: Path | None = None) -> None:
        self._shipped, self._file = shipped, file
        self._tables: dict[Path, Table] = {}
        self._lock = threading.Lock()

    def remember_in(self, file: Path | None) -> None:
        """Name the user's file. It is neither read nor made before it is needed."""
        self._file = file

    def shipped(self, card: Card, kind: str) -> dict | None:
        """The entry that ships for a card of that name."""
        with self._lock:
            return self._table(self._shipped).get(card.name, {}).get(kind)

    def remembered(self, card: Card, kind: str) -> dict | None:
        """The entry of an earlier session on this very card, with these versions."""
        with self._lock:
            return None if self._file is None else self._table(self._file).get(card.build, {}).get(kind)

    def remember(self, card: Card, kind: str, found: dict) -> None:
        """Put an entry into the user's file, beside what other processes have put there since."""
        with self._lock:
            if self._file is None:
                return
            self._tables.pop(self._file, None)
            table = self._table(self._file)
            table.setdefault(card.build, {})[kind] = found
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                beside = self._file.with_name(f"{self._file.name}.{os.getpid()}.part")
                beside.write_text(json.dumps(table, indent=1) + "\n")
                beside.replace(self._file)
            except OSError as error:  # a folder without permission must not end a render
                log.warning("measured tiles are not kept for later sessions: %s", error)
                self._file = None

    def _table(self, path: Path) -> Table:
        """Of a file, read once."""
        if path not in self._tables:
            self._tables[path] = _read(path)
        return self._tables[path]


def _read(path: Path) -> Table:
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("measured tiles in %s cannot be read and are measured anew: %s", path, error)
        return {}
    if isinstance(table, dict) and all(isinstance(kinds, dict) for kinds in table.values()):
        return table
    log.warning("measured tiles in %s are no table of cards and kinds, and are measured anew", path)
    return {}


KNOWN = TunedTiles()  # belongs to the process, as the cards do; the host names the user's file
