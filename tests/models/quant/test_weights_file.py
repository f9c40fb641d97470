"""How quantised layers lie in a file: every format comes back, markers are ComfyUI's, and bad ones are told."""

from __future__ import annotations

import json

import pytest
import torch
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.format import FORMATS, dense, rows_of
from interspatial.models.quant.uniform import encode_uniform
from interspatial.models.quant.weights_file import (
    MARKER,
    as_core,
    as_marker,
    coded_layer,
    layer_tensors,
    read_marker,
)
from interspatial.tests.models.tinies import noise

CASES = [(name, bits) for name, form in FORMATS.items() for bits in form.widths]
LAYER = "blocks.0.ffn.0"
every = pytest.mark.parametrize(("name", "bits"), CASES, ids=lambda x: str(x))


def encoded(name: str, bits: int, rows: int = 33, columns: int = 80):
    return FORMATS[name].encode(noise(rows, columns, seed=bits), bits)


def read_back(tensors: dict):
    conf = read_marker(LAYER, tensors[f"{LAYER}.{MARKER}"])
    return coded_layer(LAYER, conf, {key.removeprefix(f"{LAYER}.weight"): x for key, x in tensors.items()})


@every
def test_a_layer_comes_back(name, bits):
    coded = encoded(name, bits)
    tensors = layer_tensors(LAYER, coded, 8)
    assert sum(x.nbytes for x in tensors.values()) % 64 == 0
    if as_core(coded):  # ComfyUI reads it: test_quant_loading.py
        assert torch.equal(tensors[f"{LAYER}.weight"], coded.codes)
        return
    again = read_back(tensors)
    assert again.shape == coded.shape and again.basis.block == coded.basis.block
    assert again.tensors().keys() == coded.tensors().keys()
    assert all(torch.equal(x, coded.tensors()[suffix]) for suffix, x in again.tensors().items())
    assert torch.equal(dense(again), dense(coded))


@every
@pytest.mark.parametrize("rows", (256, 65))
def test_rows_are_those_of_the_whole(name, bits, rows):
    """256: as many as a codebook has vectors, which are no rows."""
    coded = encoded(name, bits, rows=rows, columns=64)
    part = rows_of(coded, 2, 31)
    assert part.shape == (29, 64)
    torch.testing.assert_close(dense(part), dense(coded)[2:31], rtol=1e-5, atol=1e-6)


def test_a_basis_comes_back_whole():
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0)).int()
    turns = torch.linalg.qr(noise(5, 16, 16)).Q
    basis = Basis(16, noise(80).exp(), turns, order)
    coded = encode_uniform("rtn", noise(33, 80), 4, basis, clip=False)
    again = read_back(layer_tensors(LAYER, coded, 16))
    assert torch.equal(dense(again), dense(coded))
    for name in ("mask", "turns", "order"):
        assert torch.equal(getattr(again.basis, name), getattr(basis, name))


def test_int8_without_a_mask_is_comfyuis_own():
    coded = encoded("vidit_q", 8, columns=256)
    conf = read_marker(LAYER, layer_tensors(LAYER, coded, 8)[f"{LAYER}.{MARKER}"])
    assert conf == {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
    conf = read_marker(LAYER, layer_tensors(LAYER, coded, 16)[f"{LAYER}.{MARKER}"])
    assert conf["full_precision_matrix_mult"] is True


def test_a_marker_is_json_whatever_lies_before_it():
    for beside in range(9):
        marker = as_marker({"format": "x"}, beside)
        assert (len(marker) + beside) % 64 == 0
        assert json.loads(marker.numpy().tobytes()) == {"format": "x"}


@pytest.mark.parametrize("text", (b"{", b"\xff\xfe", b"[1]", b""))
def test_a_marker_that_is_none(text):
    with pytest.raises(ValueError, match=LAYER):
        read_marker(LAYER, torch.tensor(list(text), dtype=torch.uint8))


BAD_MARKERS = {
    "format": "interspatial_none", "bits": 5, "shape": [33], "block": 0, "act_bits": 4,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [*BAD_MARKERS.items(), ("shape", 33), ("shape", [33, 81]), ("shape", "ab"),
                                            ("shape", [33.0, 80]), ("block", 8), ("block", 64), ("block", "a"),
                                            ("block", None), ("bits", [4]), ("bits", None)])  # fmt: skip
def test_a_marker_that_does_not_fit(key, value):
    tensors = layer_tensors(LAYER, encoded("rtn", 4), 8)
    conf = read_marker(LAYER, tensors[f"{LAYER}.{MARKER}"]) | {key: value}
    with pytest.raises(ValueError, match=LAYER):
        coded_layer(LAYER, conf, {k.removeprefix(f"{LAYER}.weight"): x for k, x in tensors.items()})


BAD_TENSORS = {
    "": torch.zeros(33, 39, dtype=torch.uint8), "_scale": torch.zeros(33), "_table": torch.zeros(33, 2),
    "_mask": torch.ones(79), "_turns": torch.ones(5, 16, 8), "_order": torch.zeros(80, dtype=torch.int32),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "tensor"), [*BAD_TENSORS.items(), ("", torch.zeros(33, 40)), ("", None),
                                                ("_mask", torch.ones(1)), ("_order", torch.arange(80)),
                                                ("_scale", None), ("_table", None)])  # fmt: skip
def test_tensors_that_do_not_fit(suffix, tensor):
    tensors = layer_tensors(LAYER, encoded("rtn", 4), 8)
    conf = read_marker(LAYER, tensors[f"{LAYER}.{MARKER}"])
    parts = {k.removeprefix(f"{LAYER}.weight"): x for k, x in tensors.items()} | {suffix: tensor}
    with pytest.raises(ValueError, match=LAYER):
        coded_layer(LAYER, conf, {k: x for k, x in parts.items() if x is not None})
