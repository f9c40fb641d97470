"""The Triton backend of the weighted sum against float64 and the torch backend.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.weighted_sum import BACKENDS, weighted_sum

pytestmark = pytest.mark.usefixtures("interpreter")

# Half a unit in the last place; a whole one for bfloat16, which Triton 3.6's interpreter cuts off instead of rounding.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}
LEAST = 2**-25  # half of the smallest float16
WEIGHTS = [[(-1) ** k * (0.4 + k) for k in range(count)] for count in range(1, 9)]


def some(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=draw).to(dtype) for _ in range(count)]


def check(tensors, weights) -> torch.Tensor:
    """A rounding away from float64, two from the torch backend."""
    got = weighted_sum(tensors, weights, backend="triton")
    truth = sum(w * x.double() for w, x in zip(weights, tensors, strict=True))
    terms = sum(abs(w) * x.double().abs() for w, x in zip(weights, tensors, strict=True))
    room = TOLERANCE[got.dtype] * truth.abs() + 1e-6 * terms + LEAST
    other = weighted_sum(tensors, weights, backend="torch")
    assert got.dtype == other.dtype and got.shape == other.shape
    assert ((got.double() - truth).abs() <= room).all()
    assert ((got.double() - other.double()).abs() <= 2 * room).all()
    return got


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
def test_it_matches_float64(weights, dtype):
    for size in (1, 2047, 2049, 4096):  # below a program's share, above it, ragged and even
        check(some((size,), len(weights), dtype), weights)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)], ids=str)
def test_scalars_and_nothing(shape):
    check(some(shape, 2, torch.bfloat16), [2.0, -1.0])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "stored", ["rows", "ragged rows", "short rows", "transposed", "permuted", "expanded", "mixed", "odd address"]
)
def test_strides_do_not_matter(stored):
    wide = [x.view(3, 70, 64) for x in some((3 * 70 * 64,), 3, torch.bfloat16)]
    tensors = {
        "rows": [x[:, 3:50] for x in wide],  # distance and length are multiples of 8
        "ragged rows": [x.view(3, 1, 4480)[..., :2251] for x in wide],  # as the video of a row that ends with sound
        "short rows": [x[..., 8:40] for x in wide],
        "transposed": [x.transpose(1, 2) for x in wide],  # all alike: the result is transposed too
        "permuted": [x.transpose(1, 2)[:, 1:] for x in wide],
        "expanded": [x[:1].expand(3, 70, 64) for x in wide],
        "mixed": [wide[0][:, :40], wide[1][:, 7:47].clone(), wide[2][:, :40].transpose(0, 1).clone().transpose(0, 1)],
        "odd address": [x.view(-1)[1:4098] for x in wide],
    }[stored]
    got = check(tensors, (2.0, -1.0, 0.5))
    assert got.stride() == tensors[0].stride() or got.is_contiguous()


def test_distances_past_31_bits():
    """Only the memory of the rows is touched; not poisoned, which would fill all 4 GB."""
    step = 1 << 31
    far = torch.empty(step + 4096, dtype=torch.bfloat16).as_strided((2, 4096), (step, 1))
    near = some((2, 4096), 1, torch.bfloat16)[0]
    far.copy_(near)
    check([far, near], (2.0, 1.0))


def test_it_is_the_first_choice():
    tensors = some((5000,), 2, torch.bfloat16)
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    assert torch.equal(weighted_sum(tensors, (2.0, -1.0)), weighted_sum(tensors, (2.0, -1.0), backend="triton"))


def test_nine_tensors_are_for_torch():
    tensors = some((5,), 9, torch.float32)
    with pytest.raises(ValueError, match="9 tensors; it takes up to 8"):
        weighted_sum(tensors, [1.0] * 9, backend="triton")
    assert torch.allclose(weighted_sum(tensors, [1.0] * 9), torch.stack(tensors).sum(0), atol=1e-5)
