"""Safetensors files, read and written one tensor at a time: memory holds one tensor, whatever the size of the file.

A file is written beside its final place, with room for the header at its start, and a journal of what it holds already;
a run that was interrupted goes on there. It gets its name when it is whole. Files are read, not mapped: what is read
from a map counts as memory of the process until the system takes it back.
Source: the safetensors format (github.com/huggingface/safetensors), where spaces may follow the header's JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMED = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
DTYPES = {name: getattr(torch, attr) for name, attr in _NAMED.items() if hasattr(torch, attr)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WORD = 8  # bytes that say how long the header is
ALIGNED = 64  # bytes; the data begins at a multiple, as torch has its own tensors
LARGEST_HEADER = 100_000_000  # bytes, what the format allows
ENTRY = 192  # bytes of a header entry beside its name: dtype, five sizes, two offsets of twenty digits


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. start, end: bytes from the beginning of the data"""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Reader:
    """The tensors of a file. entries: by name, in the order of the header; metadata: texts"""

    def __init__(self, path: str | Path) -> None:
        """raises: ValueError that says what is wrong with the file; OSError"""
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(WORD), "little")
            if size < WORD or not 2 <= length <= min(size - WORD, LARGEST_HEADER):
                raise self._refused("it does not begin with a safetensors header, or ends within it")
            self.header = file.read(length)
        self._data = WORD + length
        try:
            found = json.loads(self.header)
            self.metadata: dict[str, str] = found.pop("__metadata__", None) or {}
            self.entries = {name: self._entry(name, about) for name, about in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refused(f"its header cannot be read ({type(error).__name__}: {error})") from error
        if (end := max((entry.end for entry in self.entries.values()), default=0)) != size - self._data:
            raise self._refused(f"its header tells of {end} bytes of tensors, and {size - self._data} are there")

    def read(self, name: str) -> Tensor:
        """A tensor in memory of its own. raises: OSError; ValueError when the file has become shorter"""
        entry = self.entries[name]
        data = torch.empty(entry.nbytes, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(self._data + entry.start)
            if entry.nbytes and file.readinto(memoryview(data.numpy())) != entry.nbytes:
                raise self._refused(f"it ends within {name}")
        return data.view(entry.dtype).view(entry.shape)

    def _entry(self, name: str, about: Mapping) -> Entry:
        if about["dtype"] not in DTYPES:
            raise ValueError(f"{name} is of {about['dtype']}, which is none of {', '.join(DTYPES)}")
        entry = Entry(DTYPES[about["dtype"]], tuple(about["shape"]), *about["data_offsets"])
        if entry.start < 0 or entry.end - entry.start != entry.nbytes:
            raise ValueError(f"{name} has {entry.end - entry.start} bytes for {about['dtype']} {list(entry.shape)}")
        return entry

    def _refused(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.path} cannot be read: {reason}. Accepted: a whole safetensors file; copy or download it again."
        )


class Writer:
    """A file that comes group by group. notes: of the groups that are written, by name; those of an earlier run with
    the same fingerprint are there from the start.
    """

    def __init__(self, path: str | Path, fingerprint: str, room: int) -> None:
        """fingerprint: of everything that decides what is written
        room: bytes kept for the header, as `header_room`
        raises: OSError
        """
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.journal = self.path.with_name(f"{self.path.name}.partial.journal")
        self.entries: dict[str, Entry] = {}
        self.notes: dict[str, Any] = {}
        self._room, self._end = -(-(WORD + room) // ALIGNED) * ALIGNED - WORD, 0
        whole = self._take_up({"fingerprint": fingerprint, "room": self._room})
        if not self.notes:
            self.partial.write_bytes(b"")
        self.journal.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")

    def add(self, group: str, tensors: Iterable[tuple[str, Tensor]], note: Any) -> None:
        """Write the tensors of a group in this order; the group is done when this returns.

        raises: OSError; ValueError for a tensor that would lie at no multiple of its item size
        """
        entries, end = {}, self._end
        with open(self.partial, "r+b") as file:
            file.truncate(WORD + self._room + end)  # what an interrupted group left
            file.seek(WORD + self._room + end)
            for name, tensor in tensors:
                if end % tensor.dtype.itemsize:
                    raise ValueError(f"{name} of {tensor.dtype} cannot begin at byte {end}; larger items go first.")
                file.write(bytes_of(tensor))
                entries[name] = Entry(tensor.dtype, tuple(tensor.shape), end, end + tensor.nbytes)
                end += tensor.nbytes
            _flush(file)
        line = {"group": group, "note": note, "entries": {name: _about(entry) for name, entry in entries.items()}}
        with open(self.journal, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            _flush(journal)
        self.entries |= entries
        self.notes[group], self._end = note, end

    def read(self, name: str) -> Tensor:
        """A tensor of a group that is done. raises: OSError"""
        entry = self.entries[name]
        with open(self.partial, "rb") as file:
            file.seek(WORD + self._room + entry.start)
            data = bytearray(file.read(entry.nbytes))
        return torch.frombuffer(data, dtype=torch.uint8).view(entry.dtype).view(entry.shape)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header and give the file its name, in place of an older one. raises: OSError, ValueError"""
        header = {"__metadata__": dict(metadata)} | {name: _about(entry) for name, entry in self.entries.items()}
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > self._room:
            raise ValueError(f"The header takes {len(text)} bytes, {self._room} were kept for it.")
        with open(self.partial, "r+b") as file:
            file.write(self._room.to_bytes(WORD, "little") + text.ljust(self._room))
            file.truncate(WORD + self._room + self._end)
            _flush(file)
        os.replace(self.partial, self.path)
        self.journal.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is written so far."""
        self.partial.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _take_up(self, begin: dict) -> list[str]:
        """Go on where an earlier run ended, if it wrote the same.

        returns: the lines of the journal that hold; it may end within one
        """
        whole = [json.dumps(begin)]
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
            size = self.partial.stat().st_size
            for text in lines[1:] if lines[0] == whole[0] else ():
                line = json.loads(text)
                found = {name: _entry_of(about) for name, about in line["entries"].items()}
                end = max((entry.end for entry in found.values()), default=self._end)
                if WORD + self._room + end > size:
                    break
                self.notes[line["group"]] = line["note"]
                self.entries, self._end = self.entries | found, end
                whole.append(text)
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            pass  # no journal, or what follows its last whole line
        return whole


def header_room(names: Iterable[str], metadata: Mapping[str, str]) -> int:
    """Bytes that the header of a file with these tensors and texts takes at most."""
    return sum(len(json.dumps(name)) + ENTRY for name in names) + len(json.dumps(dict(metadata))) + ENTRY


def bytes_of(tensor: Tensor) -> memoryview:
    """What a file holds of a tensor."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _about(entry: Entry) -> dict:
    return {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [entry.start, entry.end]}


def _entry_of(about: Mapping) -> Entry:
    return Entry(DTYPES[about["dtype"]], tuple(about["shape"]), *about["data_offsets"])


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
