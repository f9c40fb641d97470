"""Files written layer by layer: what is in them, runs that are stopped, runs that are repeated, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interspatial.models.quant import quantise as module
from interspatial.models.quant import uniform
from interspatial.models.quant.format import FORMATS, dense
from interspatial.models.quant.quantise import layers_of, quantise, relative_error
from interspatial.models.quant.quantise_summary import MARK
from interspatial.models.quant.recipe import Choice, Recipe
from interspatial.models.quant.safetensors_stream import Entry, Reader, Writer, bytes_of, header_room
from interspatial.models.quant.stats import LayerStats
from interspatial.models.quant.weights_file import MARKER, coded_layer, read_marker
from interspatial.tests.models.tinies import noise
from safetensors.torch import load_file, save_file

LAYERS = ("blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.1.ffn.0", "blocks.1.ffn.2")
W4 = Choice("vidit_q", 4)


@dataclass
class Memory:
    """A source that counts what is read."""

    tensors: dict
    metadata: dict = field(default_factory=lambda: {"config": "{}", "made": "by hand"})
    fingerprint: str = "one"
    name: str = "tiny.safetensors"
    path: Path | None = None
    reads: list = field(default_factory=list)

    @property
    def entries(self):
        return {name: Entry(x.dtype, tuple(x.shape)) for name, x in self.tensors.items()}

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name]


def model(dtype=torch.bfloat16) -> dict:
    """Odd sizes on purpose: what follows them must still lie at whole words."""
    tensors = {f"{layer}.weight": noise(65 + i, 80, seed=i).to(dtype) for i, layer in enumerate(LAYERS)}
    tensors |= {f"{layer}.bias": noise(65 + i, seed=9 + i).to(torch.bfloat16) for i, layer in enumerate(LAYERS)}
    return tensors | {
        "patch_embedding.weight": noise(5, 3, 1, 2, 2), "head.head.weight": noise(7, 80).half(),
        "blocks.0.norm3.weight": noise(3), "mask": torch.tensor([True, False, True]), "scalar": torch.tensor(2.5),
        "nothing": torch.tensor([]), "eight": noise(3).to(torch.float8_e4m3fn), "numbers": torch.arange(3),
    }  # fmt: skip


def stats(columns: int = 80) -> LayerStats:
    return LayerStats(noise(2, columns).abs() + 0.1, noise(2, columns).square())


@pytest.fixture
def source():
    return Memory(model())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deeper" / "quantised.safetensors"


def recipe(choice=W4, layers=LAYERS) -> Recipe:
    return Recipe.same(layers, choice)


def nothing_lies_in(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def test_the_layers_of_a_source(source):
    assert tuple(layers_of(source)) == LAYERS


def test_everything_is_in_the_file(source, out):
    mixed = Recipe({LAYERS[0]: W4, LAYERS[1]: Choice("vidit_q", 8), LAYERS[3]: Choice("rtn", 3)})
    done = quantise(source, mixed, out, act_bits=16)
    written = load_file(out)
    for layer, choice in mixed.layers.items():
        weight = source.tensors[f"{layer}.weight"]
        conf = read_marker(layer, written.pop(f"{layer}.{MARKER}"))
        parts = {name.removeprefix(f"{layer}.weight"): written.pop(name) for name in list(written)
                 if name.startswith(f"{layer}.weight")}  # fmt: skip
        expected = FORMATS[choice.format].encode(weight, choice.bits)
        if choice.bits == 8:
            assert conf["format"] == "int8_tensorwise" and torch.equal(parts[""], expected.codes)
        else:
            assert conf["act_bits"] == 16 and torch.equal(dense(coded_layer(layer, conf, parts)), dense(expected))
        error = (dense(expected).double() - weight.double()).norm() / weight.double().norm()
        assert done.layers[layer].error == pytest.approx(float(error), rel=1e-5)
        assert done.layers[layer].after == expected.nbytes and done.layers[layer].before == weight.nbytes
    left = {name: x for name, x in source.tensors.items() if name.removesuffix(".weight") not in mixed.layers}
    assert written.keys() == left.keys()
    for name, x in left.items():
        assert written[name].dtype == x.dtype and written[name].shape == x.shape
        assert bytes_of(written[name]) == bytes_of(x)
    assert {key: Reader(out).metadata[key] for key in source.metadata} == source.metadata


def test_tensors_lie_where_they_can_be_mapped(source, out):
    quantise(source, recipe(Choice("rtn", 3)), out)
    reader = Reader(out)
    assert (8 + len(reader.header)) % 64 == 0
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in reader.entries.values())
    assert all(reader.entries[f"{layer}.weight_scale"].start % 64 == 0 for layer in LAYERS)
    for name, x in load_file(out).items():
        assert bytes_of(reader.read(name)) == bytes_of(x) and reader.read(name).shape == x.shape


def test_the_summary_counts_bytes(source, out):
    done = quantise(source, recipe(), out)
    weights = sum(source.tensors[f"{layer}.weight"].numel() for layer in LAYERS)
    assert done.before == 2 * weights and done.size == out.stat().st_size
    assert done.bits_per_weight == 8 * done.after / weights
    assert done.after == sum(FORMATS["vidit_q"].size(shape, 4) for shape in layers_of(source).values())
    table = "\n".join(done.lines())
    assert "vidit_q 4" in table and max(done.layers, key=lambda x: done.layers[x].error) in table


def test_statistics_reach_the_format(source, out):
    told = SimpleNamespace(layers={LAYERS[1]: stats()})
    quantise(source, recipe(), out, told)
    names = load_file(out)
    assert f"{LAYERS[1]}.weight_mask" in names and f"{LAYERS[0]}.weight_mask" not in names


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_source_is_as_it_was(out, dtype):
    """A MODEL hands out its own weights."""
    source = Memory(model(dtype))
    quantise(source, recipe(), out, SimpleNamespace(layers={LAYERS[1]: stats()}))
    assert all(bytes_of(source.tensors[name]) == bytes_of(x) for name, x in model(dtype).items())


def test_a_plain_fp8_file(out):
    tensors = model(torch.float8_e4m3fn)
    done = quantise(Memory(tensors), recipe(Choice("rtn", 8)), out)
    assert max(told.error for told in done.layers.values()) < 0.01
    assert done.before == sum(tensors[f"{layer}.weight"].numel() for layer in LAYERS)


def stop_at(layer: int):
    def tick(done: int) -> None:
        if done == layer:
            raise InterruptedError

    return tick


@pytest.mark.parametrize("at", range(5))
def test_a_stopped_run_goes_on(source, out, at):
    whole = out.with_name("whole.safetensors")
    quantise(source, recipe(), whole)
    with pytest.raises(OSError):
        quantise(source, recipe(), out, tick=stop_at(at))
    assert not out.exists()
    source.reads.clear()
    quantise(source, recipe(), out)
    read = [name for name in source.reads if name.removesuffix(".weight") in LAYERS]
    assert read == [f"{layer}.weight" for layer in LAYERS[at:]]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(x.name for x in out.parent.iterdir()) == ["quantised.safetensors", "whole.safetensors"]


@pytest.mark.parametrize("what", ("torn", "short", "garbage", "lost"))
def test_a_damaged_journal(source, out, what):
    with pytest.raises(OSError):
        quantise(source, recipe(), out, tick=stop_at(3))
    partial, journal = (out.with_name(f"{out.name}.partial{end}") for end in ("", ".journal"))
    if what == "torn":
        journal.write_bytes(journal.read_bytes()[:-40])
    elif what == "short":
        partial.write_bytes(partial.read_bytes()[:-40])
    elif what == "garbage":
        journal.write_bytes(b"\xff{[")
    else:
        partial.unlink()
    with pytest.raises(OSError):
        quantise(source, recipe(), out, tick=stop_at(3))  # and goes on from its own journal
    quantise(source, recipe(), out)
    assert out.read_bytes() == quantised_elsewhere(source, out.with_name("again.safetensors"))


def quantised_elsewhere(source, path: Path) -> bytes:
    quantise(source, recipe(), path)
    return path.read_bytes()


def test_other_settings_begin_anew(source, out):
    with pytest.raises(OSError):
        quantise(source, recipe(), out, tick=stop_at(3))
    source.reads.clear()
    quantise(source, recipe(Choice("rtn", 8)), out)
    assert f"{LAYERS[0]}.weight" in source.reads
    assert set(json.loads(Reader(out).metadata[MARK])["layers"][LAYERS[0]][:1]) == {"rtn 8"}


def test_the_same_again_is_taken(source, out):
    first = quantise(source, recipe(), out)
    source.reads.clear()
    again = quantise(source, recipe(), out, overwrite=False)
    assert again.reused and not source.reads and again.layers == first.layers and again.size == first.size


CHANGES = {
    "source": lambda source: {"source": Memory(source.tensors, fingerprint="two")},
    "recipe": lambda source: {"recipe": recipe(Choice("rtn", 4))},
    "bits": lambda source: {"act_bits": 16},
    "stats": lambda source: {"calibration": SimpleNamespace(layers={LAYERS[0]: stats()})},
}


@pytest.mark.parametrize("what", CHANGES)
def test_something_else_is_done_anew(source, out, what):
    quantise(source, recipe(), out)
    asked = {"source": source, "recipe": recipe(), "out_path": out} | CHANGES[what](source)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="there already"):
        quantise(**asked, overwrite=False)
    assert out.read_bytes() == before
    assert not quantise(**asked).reused and out.read_bytes() != before


def changed(**tensors):
    return lambda source: {"source": Memory(source.tensors | tensors)}


QUANTISED = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
REFUSED = {
    "our files": (changed(**{f"{LAYERS[0]}.{MARKER}": QUANTISED}), "quantised already"),
    "old fp8 files": (changed(**{f"{LAYERS[0]}.scale_weight": torch.ones(1)}), "quantised already"),
    "scaled fp8": (changed(scaled_fp8=torch.ones(2)), "quantised already"),
    "metadata": (lambda source: {"source": Memory(source.tensors, {"_quantization_metadata": "{}"})}, "already"),
    "whole numbers": (changed(**{f"{LAYERS[2]}.weight": torch.ones(64, 80, dtype=torch.int8)}), LAYERS[2]),
    "no layers": (lambda source: {"recipe": Recipe()}, "no layer"),
    "unknown layer": (lambda source: {"recipe": recipe(layers=("blocks.7.ffn.0",))}, "blocks.7.ffn.0"),
    "kept layer": (lambda source: {"recipe": recipe(layers=("head.head",))}, "head.head is to be quantised, but"),
    "unfit layer": (changed(**{f"{LAYERS[2]}.weight": noise(64, 84)}), LAYERS[2]),
    "statistics": (lambda source: {"calibration": SimpleNamespace(layers={LAYERS[1]: stats(64)})}, LAYERS[1]),
    "not a number": (changed(**{f"{LAYERS[1]}.weight": noise(64, 80).log()}), f"{LAYERS[1]} holds values"),
    "infinite": (changed(**{f"{LAYERS[1]}.weight": noise(64, 80) / 0}), f"{LAYERS[1]} holds values"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_what_is_wrong_and_leave_nothing(source, out, what):
    change, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        quantise(**{"source": source, "recipe": recipe(), "out_path": out} | change(source))
    assert nothing_lies_in(out.parent)


def test_the_source_is_never_replaced(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(model(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not the source"):
        quantise(Memory(model(), path=path), recipe(), path, overwrite=True)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_before(source, out, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(ValueError, match="are free"):
        quantise(source, recipe(), out)
    assert nothing_lies_in(out.parent)


def test_a_disk_that_fails_leaves_what_was_there(source, out, monkeypatch):
    quantise(source, recipe(Choice("rtn", 8)), out)
    before, calls = out.read_bytes(), []

    def full(file):
        calls.append(file)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Writer.__init__.__globals__["os"], "fsync", full)
    with pytest.raises(OSError, match="run again to go on"):
        quantise(source, recipe(), out)
    assert out.read_bytes() == before
    quantise(source, recipe(), out)
    assert Reader(out).metadata[MARK].count("vidit_q 4") == 4


def test_layers_are_encoded_and_compared_in_parts(monkeypatch):
    weight = noise(65, 80)
    whole = FORMATS["vidit_q"].encode(weight, 4, stats())
    error = relative_error(whole, weight)
    for part in (uniform, module):
        monkeypatch.setattr(part, "AT_ONCE", 8 * 80)
    parts = FORMATS["vidit_q"].encode(weight, 4, stats())
    assert torch.equal(parts.table, whole.table)
    torch.testing.assert_close(dense(parts), dense(whole))
    assert relative_error(whole, weight) == pytest.approx(error, rel=1e-6)


def test_a_writer_keeps_room_for_any_header(tmp_path):
    names = [f"{'x' * 40}{i}" for i in range(9)]
    writer = Writer(tmp_path / "a.safetensors", "1", header_room(names, {"a": "b"}))
    for name in names:
        writer.add(name, [(name, torch.zeros(1, 1, 1, 1, 8, dtype=torch.float8_e4m3fn))], None)
    writer.finish({"a": "b"})
    assert set(load_file(tmp_path / "a.safetensors")) == set(names)
    small = Writer(tmp_path / "b.safetensors", "1", 16)
    small.add("a", [("a", torch.zeros(3))], None)
    with pytest.raises(ValueError, match="kept for it"):
        small.finish({})
    with pytest.raises(ValueError, match="larger items go first"):
        small.add("b", [("b", torch.zeros(1, dtype=torch.float64))], None)


def damaged(name: str, data: bytes) -> bytes:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if name == "dtype":
        header["a"]["dtype"] = "F7"
    elif name == "offsets":
        header["a"]["data_offsets"] = [0, 8]
    elif name == "entry":
        header["a"] = 3
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(12)


@pytest.mark.parametrize("what", ("truncated", "longer", "header", "text", "empty", "dtype", "offsets", "entry"))
def test_files_that_cannot_be_read(tmp_path, what):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    data = path.read_bytes()
    simple = {"truncated": data[:-1], "longer": data + b"x", "header": data[:20], "text": b"once upon a time",
              "empty": b""}  # fmt: skip
    path.write_bytes(simple[what] if what in simple else damaged(what, data))
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read"):
        Reader(path)
