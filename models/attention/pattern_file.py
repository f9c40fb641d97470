"""A pattern table as a safetensors file: tensors as they are, everything else as JSON in the metadata."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .blocks import ORDERS, Blocks
from .pattern_table import Network, PatternTable
from .patterns import Pattern

MARK = "interspatial_sparse_pattern"
VERSION = 1
DTYPES = {
    "choice": torch.int8, "prices": torch.float32, "errors": torch.float32, "calls": torch.int32,
    "mass": torch.float16, "centres": torch.float32,
}  # fmt: skip


def write_table(table: PatternTable, path: str | Path) -> None:
    """Write a file that is there as a whole or not at all; an older one of that name is replaced.

    raises: OSError of the disk
    """
    path = Path(path)
    about = {
        "version": VERSION, "network": asdict(table.network), "layers": table.layers,
        "patterns": [asdict(pattern) for pattern in table.patterns], "grid": table.grid,
        "blocks": asdict(table.blocks), "tail": table.tail, "density": table.density,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({name: getattr(table, name).contiguous() for name in DTYPES}, part, {MARK: json.dumps(about)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_table(path: str | Path) -> PatternTable:
    """The table in a file.

    raises: ValueError that names the file and says what is wrong with it
    """
    try:
        with safe_open(path, framework="pt") as file:
            mark = (file.metadata() or {}).get(MARK)
            if mark is None:
                raise ValueError("it holds no sparse pattern")
            about = json.loads(mark)
            if about.get("version") != VERSION:
                raise ValueError(f"its format is version {about.get('version')}, this pack reads version {VERSION}")
            tensors = {name: file.get_tensor(name) for name in DTYPES}
        return _checked(_table(about, tensors))
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"{error} is missing in it" if isinstance(error, KeyError) else error
        raise ValueError(
            f"The sparse pattern {path} cannot be used: {said}. Accepted: files that Calibrate Sparse Pattern wrote; "
            "calibrate again, or copy the file again."
        ) from error


def _table(about: dict, tensors: dict[str, Tensor]) -> PatternTable:
    blocks = Blocks(**about["blocks"])
    if blocks.order not in ORDERS:
        raise ValueError(f"its block order is {blocks.order!r}, which is none of {', '.join(ORDERS)}")
    if about["tail"] not in ("row", "block", None):
        raise ValueError(f"its tail is {about['tail']!r}, which is none of 'row', 'block' and None")
    layers, grid = tuple(about["layers"]), tuple(about["grid"])
    if len(grid) != 3 or not all(isinstance(number, int) for number in (*grid, *layers, blocks.side)):
        raise ValueError(f"its grid is {grid}, its layers are {layers} and its block side is {blocks.side}")
    return PatternTable(
        network=Network(**about["network"]), layers=layers, grid=grid, blocks=blocks, tail=about["tail"],
        patterns=tuple(Pattern(**pattern) for pattern in about["patterns"]), density=float(about["density"]),
        **tensors,
    )  # fmt: skip


def _checked(table: PatternTable) -> PatternTable:
    """The table, if its parts fit together."""
    bins, layers, heads, count = (*table.choice.shape[:1], len(table.layers), table.network.heads, len(table.patterns))
    blocks = len(table.centres)
    shapes = {
        "choice": (bins, layers, heads), "prices": (count,), "errors": (bins, layers, heads, count),
        "calls": (bins, layers), "mass": (layers, heads, blocks), "centres": (blocks, 3),
    }  # fmt: skip
    for name, shape in shapes.items():
        tensor = getattr(table, name)
        if tensor.shape != shape or tensor.dtype != DTYPES[name] or not tensor.numel():
            raise ValueError(
                f"its {name} are {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, where "
                f"{str(DTYPES[name]).removeprefix('torch.')} {list(shape)} belong"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"its {name} are not finite")
    if table.patterns[0] != Pattern("full"):
        raise ValueError("its first pattern is not full attention")
    if table.choice.min() < 0 or table.choice.max() >= count:
        raise ValueError(f"it chooses patterns from {table.choice.min()} to {table.choice.max()}, and has {count}")
    if table.calls.min() < 0 or not table.calls.any():
        raise ValueError("it rests on no attention call")
    return table
