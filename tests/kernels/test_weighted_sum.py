"""Weighted sums in torch against float64, and what is refused. The Triton backend: test_triton_weighted_sum.py."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import weighted_sum as module
from interspatial.kernels.weighted_sum import BACKENDS, weighted_sum, weighted_sum_reference

pytestmark = pytest.mark.usefixtures("poisoned")

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a unit in the last place
LEAST = 2**-25  # half of the smallest float16
SHAPES = [(), (0,), (1,), (3, 0, 5), (7,), (1, 16, 3, 5, 9), (2, 1000, 3), (20_011,)]  # scalar, empty, ragged
WEIGHTS = [(1.0,), (2.5, -1.5), (3.0, -3.0, 1.0), (0.1, -0.2, 0.3, -0.4, 0.5, 0.6, -0.7, 0.8)]


def some(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=draw).to(dtype) for _ in range(count)]


def check(got, tensors, weights) -> None:
    """Within half a unit in the last place of the float64 sum, or of the float32 sums of its terms."""
    truth = sum(w * x.double() for w, x in zip(weights, tensors, strict=True))
    terms = sum(abs(w) * x.double().abs() for w, x in zip(weights, tensors, strict=True))
    assert got.dtype == tensors[0].dtype and got.shape == tensors[0].shape
    assert ((got.double() - truth).abs() <= TOLERANCE[got.dtype] * truth.abs() + 1e-6 * terms + LEAST).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_matches_float64(shape, dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 10)  # several parts, the last one short
    for weights in WEIGHTS:
        tensors = some(shape, len(weights), dtype)
        check(weighted_sum(tensors, weights), tensors, weights)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_reference_matches_a_closed_form(dtype):
    x = torch.arange(-9, 10).to(dtype)
    assert torch.equal(weighted_sum_reference([x, x], [-4.5, 0.5]), -4 * x)
    assert torch.equal(weighted_sum([x, x], [-4.5, 0.5]), -4 * x)


def test_16_bit_numbers_are_added_in_float32():
    """1024 and 1 + 2**-7 have no sum in bfloat16, and what is left of it is the answer."""
    big, small = torch.full((9,), 1024.0).bfloat16(), torch.full((9,), 1.0 + 2**-7).bfloat16()
    assert torch.equal(weighted_sum([big, small, big], [1.0, 1.0, -1.0]), small)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("stored", ["rows", "columns", "transposed", "expanded", "mixed"])
def test_strides_do_not_matter(stored, dtype):
    wide = [x.view(3, 40, 33) for x in some((3 * 40 * 33,), 3, dtype)]
    tensors = {
        "rows": [x[:, :17] for x in wide],
        "columns": [x[..., 1:20] for x in wide],
        "transposed": [x.transpose(1, 2) for x in wide],
        "expanded": [x[:, :1].expand(3, 40, 33) for x in wide],
        "mixed": [wide[0], wide[1][..., :33], wide[2].transpose(0, 1).contiguous().transpose(0, 1)],
    }[stored]
    before = [x.clone() for x in tensors]
    check(weighted_sum(tensors, (2.0, -1.0, 0.5)), tensors, (2.0, -1.0, 0.5))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True)), "an input was written to"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_result_is_new_memory(dtype):
    (x,) = some((5, 7), 1, dtype)
    got = weighted_sum([x], [1.0])
    assert got.data_ptr() != x.data_ptr() and torch.equal(got, x)


def test_float64_stays_float64():
    x, y = (t.double() for t in some((11,), 2, torch.float32))
    assert torch.equal(weighted_sum([x, y], [1.0, 1e-12]), x + 1e-12 * y)


def test_inference_tensors():
    with torch.inference_mode():
        tensors = some((2, 9), 2, torch.bfloat16)
        check(weighted_sum(tensors, (2.0, -1.0)), tensors, (2.0, -1.0))


@pytest.mark.parametrize(
    ("tensors", "weights", "says"),
    [
        ([], [], "there is no tensor"),
        ([torch.ones(2)], [1.0, 2.0], "1 tensors and 2 weights"),
        ([torch.ones(2, dtype=torch.int32)], [1.0], "torch.int32; it takes floating point"),
        ([torch.ones(2), torch.ones(3)], [1.0, 2.0], r"\[3\] on cpu is among .* all must be alike"),
        ([torch.ones(2), torch.ones(2).half()], [1.0, 2.0], "float16 .* all must be alike"),
        ([torch.ones(2), torch.ones(2, device="meta")], [1.0, 2.0], "on meta is among .* all must be alike"),
    ],
)
def test_what_is_refused(tensors, weights, says):
    with pytest.raises(ValueError, match=says):
        weighted_sum(tensors, weights)


def test_backends(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    with pytest.raises(ValueError, match=r"triton backend .* \(TRITON_INTERPRET=1\)"):
        weighted_sum([torch.ones(3)], [1.0], backend="triton")
    assert torch.equal(weighted_sum([torch.ones(3)], [2.0], backend="torch"), torch.full((3,), 2.0))
