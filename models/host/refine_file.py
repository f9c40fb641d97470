"""A refined copy of a quantised file: written block by block, gone on with after a stop, named when it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ..quant.quantise_summary import MARK as QUANTISED
from ..quant.refine import Effort, Refined
from ..quant.safetensors_stream import Reader, Writer, bytes_of, header_room
from ..quant.weights_file import MARKER, coded_layer, layer_tensors, read_marker
from .block_replay import Evaluation
from .quant_loading import SUFFIXES
from .quant_sources import FileSource, ModelSource
from .refining import coded_blocks, network_of, refined_blocks

MARK = "interspatial_refined"  # in the metadata of a file


@dataclass(frozen=True)
class RefinedFile:
    """errors: by block, before and after: squared error over what the block adds    reused: from an earlier run"""

    path: Path
    errors: Mapping[str, tuple[float, float]]
    reused: bool = False

    def lines(self) -> list[str]:
        """For a report."""
        before, after = (sum(pair[i] for pair in self.errors.values()) / len(self.errors) for i in (0, 1))
        head = f"{self.path.name}: {len(self.errors)} blocks, mean error {before:.4f} before, {after:.4f} after"
        rows = [f"{block}: {was:.4f} -> {now:.4f}" + ("" if now < was else ", kept as it was")
                for block, (was, now) in self.errors.items()]  # fmt: skip
        note = "squared, over what the block adds to its input"
        return [f"{head} ({note})" + (", from an earlier run" if self.reused else ""), *rows]


def refine_file(
    teacher, student, source: FileSource, evaluations: Callable[[], Sequence[Evaluation]], run: str, path: Path,
    effort: Effort, tick: Callable[[], None],
) -> RefinedFile:  # fmt: skip
    """Write a refined copy of `source`. Every layer keeps its format, and the file its size.

    teacher, student: MODEL in full precision; MODEL of the file
    evaluations: samples with the teacher; called when there is something left to do
    run: what decides these, as text
    raises: ValueError where the name belongs to another file; OSError of the disk
    """
    said = [source.fingerprint, ModelSource(teacher).fingerprint, asdict(effort), run]
    fingerprint = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    if (done := _done_before(path, fingerprint)) is not None:
        return done
    if path.exists():
        raise ValueError(f"{path.name} is there already, from another file or other settings. Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {key: text for key, text in source.metadata.items() if key != QUANTISED}
    writer = Writer(path, fingerprint, header_room(source.entries, metadata) + (1 << 16))
    blocks = coded_blocks(network_of(student))
    ready = {block: _ready(names, writer, writer.notes[block]) for block, names in blocks.items()
             if block in writer.notes}  # fmt: skip
    if len(ready) < len(blocks):
        dtypes = {name.removesuffix(".bias"): entry.dtype for name, entry in source.entries.items()}
        for block, found in refined_blocks(teacher, student, evaluations(), effort, tick, ready, dtypes):
            writer.add(block, _tensors(found, source).items(), [found.before, found.after])
    errors = {block: tuple(writer.notes[block]) for block in blocks}
    if "rest" not in writer.notes:
        rest = sorted(set(source.entries) - set(writer.entries), key=lambda name: -source.entries[name].dtype.itemsize)
        writer.add("rest", ((name, source.read(name)) for name in rest), None)
    writer.finish(metadata | {MARK: json.dumps({"fingerprint": fingerprint, "from": source.name, "errors": errors})})
    return RefinedFile(path, errors)


def digest(prompts: Sequence[list]) -> str:
    """Of conditionings: what tells one run from another."""
    found = hashlib.sha256()
    for prompt in prompts:
        for context, options in prompt:
            found.update(bytes_of(context))
            found.update(repr(sorted(str(key) for key in options)).encode())
    return found.hexdigest()


def _ready(names: Sequence[str], writer: Writer, errors: Sequence[float]) -> Refined:
    """A block that an earlier run has written."""
    weights, biases = {}, {}
    for name in names:
        parts = {suffix: writer.read(f"{name}.weight{suffix}") for suffix in SUFFIXES
                 if f"{name}.weight{suffix}" in writer.entries}  # fmt: skip
        weights[name] = coded_layer(name, read_marker(name, writer.read(f"{name}.{MARKER}")), parts)
        if f"{name}.bias" in writer.entries:
            biases[name] = writer.read(f"{name}.bias")
    return Refined(*errors, weights, biases)


def _tensors(found: Refined, source: FileSource) -> dict[str, Tensor]:
    """All tensors of a block's layers as the file has them; biases last, in its dtype."""
    tensors: dict[str, Tensor] = {}
    for name, coded in found.weights.items():
        act_bits = read_marker(name, source.read(f"{name}.{MARKER}"))["act_bits"]
        tensors |= layer_tensors(name, coded, act_bits)
    return tensors | {f"{name}.bias": bias for name, bias in found.biases.items()}


def _done_before(path: Path, fingerprint: str) -> RefinedFile | None:
    if not path.is_file():
        return None
    try:
        about = json.loads(Reader(path).metadata.get(MARK, "{}"))
        if about.get("fingerprint") != fingerprint:
            return None
        return RefinedFile(path, {block: tuple(pair) for block, pair in about["errors"].items()}, True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
