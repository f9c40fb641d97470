"""The block rotation against its matrix in float64, and against comfy-kitchen's."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.block_hadamard import SIZES, block_of, hadamard, rotate

pytestmark = pytest.mark.usefixtures("poisoned")

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [4, *SIZES])
def test_the_matrix_is_its_own_inverse_and_regular(size):
    matrix = hadamard(size, CPU, torch.float64)
    assert torch.equal(matrix, matrix.t())
    assert torch.equal(matrix @ matrix, torch.eye(size, dtype=torch.float64))  # powers of 2 alone: exact
    assert torch.equal(matrix.abs(), torch.full_like(matrix, size**-0.5))
    assert torch.equal(matrix.sum(1), torch.ones(size, dtype=torch.float64))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_matrix_of_comfy_kitchen(size):
    eager = pytest.importorskip("comfy_kitchen.backends.eager.convrot_w4a4")
    assert torch.equal(hadamard(size, CPU, torch.float32), eager._build_hadamard(size, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(3, 256), (2, 5, 768), (7, 192), (1, 48), (0, 64), (4, 4096)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_blocks_are_rotated_one_by_one(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1])).to(dtype)
    size = block_of(shape[-1])
    want = torch.cat([part @ hadamard(size, CPU, torch.float64) for part in x.double().split(size, -1)], -1)
    found = rotate(x, size)
    assert (found.shape, found.dtype) == (x.shape, dtype)
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert (found.double() - want).norm() <= tolerance * want.norm()


def test_the_largest_block_that_divides_is_taken():
    assert [block_of(k) for k in (5120, 13824, 8960, 1920, 48, 16, 24, 8)] == [256, 256, 256, 64, 16, 16, 1, 1]


def test_a_block_of_one_is_no_rotation():
    x = torch.randn(2, 24)
    assert rotate(x, 1) is x


def test_sizes_that_are_no_power_of_4():
    with pytest.raises(ValueError, match="no power of 4"):
        hadamard(32, CPU, torch.float32)
