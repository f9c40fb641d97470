"""A quantised file of a model of any size: one layer after the other is read, encoded and written.

The relative error of each layer is measured on what is written. What was done lies in the metadata of the file, so that
the same work is not done twice: a run with the same source and settings finds the file and takes it.
"""
# N outputs   K inputs

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .format import FORMATS, Coded, dense, rows_of, settings
from .layers import quantised_layers, why_kept
from .quantise_summary import MARK, LayerDone, Summary
from .recipe import Recipe
from .safetensors_stream import Entry, Reader, Writer, bytes_of, header_room
from .stats import LayerStats
from .weights_file import MARKER, layer_tensors

VERSION = 1  # of the arithmetic too: a file that an older one wrote is written anew
AT_ONCE = 2**22  # weights that are compared at a time
PARTS = ("weight", "weight_scale", "weight_table", "weight_mask", "weight_turns", "weight_order", MARKER)
OLD_MARKS = (".scale_weight", ".weight_scale", ".weight_scale_2")
WHOLE_MARKS = ("scaled_fp8", "_quantization_metadata")  # of a tensor, of a text in the metadata
NUMBER = 1.2345678901234567e-300  # as long as a number in JSON gets
SLACK = 64 * 2**20  # bytes of room that the disk should have beside the file


class Source(Protocol):
    """The tensors of a diffusion model, by names without prefix.

    name: for messages
    path: of the file they lie in; None: of none
    entries: shapes and dtypes
    metadata: of the file they are from
    fingerprint: of everything that decides what `read` gives
    """

    name: str
    path: Path | None
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    fingerprint: str

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Order:
    """What is asked for. stats: of the inputs of layers, where known; act_bits: 8 or 16"""

    recipe: Recipe
    stats: Mapping[str, LayerStats]
    act_bits: int = 8

    def fingerprint(self, source: Source) -> str:
        """Of everything that decides what is written."""
        names = sorted({choice.format for choice in self.recipe.layers.values()})
        said = {
            "version": VERSION, "source": source.fingerprint, "act_bits": self.act_bits,
            "layers": {layer: str(choice) for layer, choice in sorted(self.recipe.layers.items())},
            "formats": {name: settings(FORMATS[name]) for name in names},
            "metadata": dict(source.metadata),
        }  # fmt: skip
        found = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
        for layer in sorted(self.recipe.layers):
            for tensor in _parts(self.stats_of(layer)):
                found.update(layer.encode())
                found.update(bytes_of(tensor))
        return found.hexdigest()

    def stats_of(self, layer: str) -> LayerStats | None:
        """What the format of the layer is told."""
        choice = self.recipe.layers[layer]
        return self.stats.get(layer) if FORMATS[choice.format].needs else None


def layers_of(source: Source) -> dict[str, tuple[int, int]]:
    """The layers of a source that formats are for, (N, K) by name."""
    return quantised_layers((name, entry.shape) for name, entry in source.entries.items())


def quantise(
    source: Source, recipe: Recipe, out_path: str | Path, calibration=None, act_bits: int = 8,
    tick: Callable[[int], None] = lambda done: None, device: Callable[[], torch.device] = lambda: torch.device("cpu"),
    overwrite: bool = True,
) -> Summary:  # fmt: skip
    """Write a file in which the layers of the recipe are quantised and everything else is as it was.

    calibration: has `layers`, statistics by layer; None: formats do without
    tick: told the number of layers that are done, before each and at the end; what it raises ends the run, which goes
    on there the next time
    device: where layers are encoded; asked when there is something to encode
    overwrite: replace another file of that name
    raises: ValueError, before anything is written, for a source that is quantised already, a recipe or statistics that
    do not fit it (both name the layer), and for weights that are not finite; OSError of the disk, with what is kept
    """
    shapes, out_path = layers_of(source), Path(out_path)
    order = Order(recipe, {} if calibration is None else calibration.layers, act_bits)
    if reason := why_not(source, order, shapes):
        raise ValueError(f"{source.name} cannot be quantised: {reason}.")
    fingerprint = order.fingerprint(source)
    if (done := done_before(out_path, fingerprint)) is not None:
        tick(len(recipe.layers))
        return done
    if out_path.exists() and (not overwrite or (source.path is not None and out_path.samefile(source.path))):
        raise ValueError(f"{out_path} is there already: another model, other settings, or the source itself. Choose "
                         "another name, or allow a file that is not the source to be replaced.")  # fmt: skip
    out_path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(source, order, shapes, out_path)
    writer = Writer(out_path, fingerprint, _room(source, order, fingerprint))
    try:
        return _written(writer, source, order, fingerprint, tick, device())
    except ValueError:
        writer.discard()  # the next run would end at the same layer
        raise
    except OSError as error:
        raise OSError(
            f"{out_path} could not be finished: {error}. What is done lies in {writer.partial.name} beside it: make "
            "room or lift what forbids writing, and run again to go on; or delete it."
        ) from error


def why_not(source: Source, order: Order, shapes: Mapping[str, tuple[int, int]]) -> str | None:
    """Why it cannot be done, or None; names the first layer. Nothing of the weights is read."""
    marks = [name for name in source.entries if name.endswith((f".{MARKER}", *OLD_MARKS)) or name in WHOLE_MARKS]
    marks += [name for name in source.metadata if name in WHOLE_MARKS]
    if marks:
        return (f"it is quantised already ({marks[0]}), and rounding twice adds up. Start from the file in 16 bits "
                "that it was made from")  # fmt: skip
    if not order.recipe.layers:
        return "there is no layer to quantise in it; a video model with linear layers in numbered blocks is accepted"
    for layer in order.recipe.layers:
        entry = source.entries.get(f"{layer}.weight")
        if entry is not None and (reason := why_kept(layer, entry.shape)):
            return f"{layer} is to be quantised, but {reason}. Take it out of the plan"
        if entry is not None and not entry.dtype.is_floating_point:
            return f"the weight of {layer} is of whole numbers ({entry.dtype}) without a word on what they mean"
        stats = order.stats.get(layer)
        if entry is not None and stats is not None and stats.peak.shape[1] != entry.shape[1]:
            return (f"the statistics of {layer} are of {stats.peak.shape[1]} inputs, and it has {entry.shape[1]}. "
                    "Calibrate with this model")  # fmt: skip
    reason = order.recipe.why_not(shapes)
    return reason and f"{reason}. Names of layers are those of the model: connect the one that the plan was made with"


def done_before(path: Path, fingerprint: str) -> Summary | None:
    """What a file that was written with this fingerprint holds; None where there is none."""
    try:
        about = json.loads(Reader(path).metadata[MARK])
        if about["fingerprint"] != fingerprint:
            return None
        layers = {layer: LayerDone(*told) for layer, told in about["layers"].items()}
        return Summary(path, layers, path.stat().st_size, reused=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written(writer: Writer, source: Source, order: Order, fingerprint: str, tick, device) -> Summary:
    for count, layer in enumerate(order.recipe.layers):
        tick(count)
        if layer not in writer.notes:
            _write_layer(writer, source, order, layer, device)
    tick(len(order.recipe.layers))
    if "" not in writer.notes:
        others = sorted(_others(source, order), key=lambda name: -source.entries[name].dtype.itemsize)
        writer.add("", ((name, source.read(name).to(source.entries[name].dtype)) for name in others), None)
    layers = {layer: LayerDone(*writer.notes[layer]) for layer in order.recipe.layers}
    writer.finish(_metadata(source, fingerprint, layers))
    return Summary(writer.path, layers, writer.path.stat().st_size)


def _write_layer(writer: Writer, source: Source, order: Order, layer: str, device: torch.device) -> None:
    coded, done = _encoded(source, order, layer, device)
    writer.add(layer, _aligned(layer_tensors(layer, coded, order.act_bits)), list(asdict(done).values()))


def _encoded(source: Source, order: Order, layer: str, device: torch.device) -> tuple[Coded, LayerDone]:
    choice, stats = order.recipe.layers[layer], order.stats_of(layer)
    weight = source.read(f"{layer}.weight").to(device)
    before = source.entries[f"{layer}.weight"].nbytes
    if weight.dtype.itemsize == 1:
        weight = weight.to(torch.float16)  # holds all values of both kinds of fp8, which know no arithmetic
    if not weight.isfinite().all():
        raise ValueError(f"{source.name} cannot be quantised: the weight of {layer} holds values that are not finite. "
                         "The file is damaged, or a LoRA on the model is; load them anew.")  # fmt: skip
    coded = FORMATS[choice.format].encode(weight, choice.bits, _on(stats, device))
    done = LayerDone(str(choice), weight.numel(), before, coded.nbytes, relative_error(coded, weight))
    return coded, done


def relative_error(coded: Coded, weight: Tensor) -> float:
    """|decoded - weight| / |weight|, of all weights of a layer. weight: [N, K]"""
    least = torch.finfo(torch.float64).tiny
    error, power = (torch.zeros((), dtype=torch.float64, device=weight.device) for _ in range(2))
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = weight[start : start + step].float()
        error += (dense(rows_of(coded, start, start + step)) - rows).square_().sum(dtype=torch.float64)
        power += rows.square().sum(dtype=torch.float64)
    return float((error / power.clamp_min(least)).sqrt())


def _on(stats: LayerStats | None, device: torch.device) -> LayerStats | None:
    if stats is None:
        return None
    gram = None if stats.gram is None else stats.gram.to(device)
    return replace(stats, peak=stats.peak.to(device), power=stats.power.to(device), gram=gram)


def _parts(stats: LayerStats | None) -> list[Tensor]:
    return [] if stats is None else [x for x in (stats.peak, stats.power, stats.gram) if x is not None]


def _aligned(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Larger items first, the marker last: it ends at a whole word."""
    return sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0].endswith(MARKER)))


def _others(source: Source, order: Order) -> Iterator[str]:
    return (name for name in source.entries if name.removesuffix(".weight") not in order.recipe.layers)


def _metadata(source: Source, fingerprint: str, layers: Mapping[str, LayerDone]) -> dict[str, str]:
    about = {"version": VERSION, "fingerprint": fingerprint,
             "layers": {layer: list(asdict(done).values()) for layer, done in layers.items()}}  # fmt: skip
    return {**source.metadata, MARK: json.dumps(about)}


def _room(source: Source, order: Order, fingerprint: str) -> int:
    """Bytes for the header, with everything as long as it can get."""
    longest = LayerDone("x" * 32, 10**15, 10**15, 10**15, NUMBER)
    names: Iterable[str] = [*_others(source, order), *(f"{x}.{part}" for x in order.recipe.layers for part in PARTS)]
    return header_room(names, _metadata(source, fingerprint, dict.fromkeys(order.recipe.layers, longest)))


def _check_room(source: Source, order: Order, shapes: Mapping[str, tuple[int, int]], path: Path) -> None:
    others = sum(source.entries[name].nbytes for name in _others(source, order))
    wanted = others + sum(
        FORMATS[choice.format].size(shapes[layer], choice.bits, order.stats_of(layer))
        for layer, choice in order.recipe.layers.items()
    )
    partial = path.with_name(f"{path.name}.partial")
    free = shutil.disk_usage(path.parent).free + (partial.stat().st_size if partial.exists() else 0)
    if free < wanted + SLACK:
        raise ValueError(f"{path} needs {wanted / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on that disk. Make "
                         "room, or let ComfyUI keep its models on another disk.")  # fmt: skip
