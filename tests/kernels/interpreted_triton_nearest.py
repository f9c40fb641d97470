"""The Triton backend of the nearest centroid against float64 and against torch.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.nearest import BACKENDS, nearest, nearest_reference

pytestmark = pytest.mark.usefixtures("interpreter")

# B N H D and centroids: one of each, ragged tiles on both sides, whole tiles, padded head dims
SHAPES = [((1, 1, 1, 8), 1), ((2, 33, 3, 16), 31), ((1, 64, 2, 32), 64), ((1, 70, 2, 24), 33), ((1, 40, 1, 96), 65)]


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Small whole numbers, of which every product and sum is exact in every precision."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "count"), SHAPES, ids=str)
def test_whole_numbers_have_the_labels_of_the_reference(shape, count, dtype):
    """Ties too, in one step and in several: there are equal centroids, and the middle of all is 0."""
    some = whole((shape[0] * shape[2], count // 2, shape[3]), 1)
    if count > 40:
        some[:, -9:] = some[:, :9]
    centroids = torch.cat((some, torch.zeros(len(some), count % 2, shape[3]), -some), 1)
    x = whole(shape).to(dtype)
    want = nearest_reference(x, centroids)
    for backend in ("triton", "torch"):
        got = nearest(x, centroids, backend=backend)
        assert got.dtype == torch.int32 and torch.equal(got, want)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("shape", "count"), SHAPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_it_is_the_nearest_in_float32(shape, count, offset):
    x, centroids = normal(shape) + offset, normal((shape[0] * shape[2], count, shape[3]), 1) + offset
    apart = torch.cdist(x.transpose(1, 2).flatten(0, 1).double(), centroids.double())
    got = nearest(x, centroids, backend="triton")
    least = apart.gather(2, got[..., None].long())[..., 0]
    torch.testing.assert_close(least, apart.amin(2), atol=1e-4 if offset else 1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_far_from_the_origin(dtype):
    """Nearly the nearest, and nearer than products of bfloat16 in torch find."""
    x, centroids = (normal((1, 300, 2, 64)) + 40).to(dtype), normal((2, 20, 64), 1) + 40
    apart = torch.cdist(x.transpose(1, 2).flatten(0, 1).double(), centroids.double())
    excess = {}
    for name in ("triton", "torch"):
        labels = nearest(x, centroids, backend=name).long()
        excess[name] = float(apart.gather(2, labels[..., None]).sum() / apart.amin(2).sum()) - 1
    assert excess["triton"] < 1e-4 and excess["triton"] < excess["torch"]


def test_large_numbers_of_half_precision_stay_finite():
    centroids = torch.tensor([-60000.0, 60000, 59000])[None, :, None].expand(1, 3, 8).contiguous()
    x = centroids[None, 0, :, None].half()
    assert nearest(x, centroids, backend="triton").tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("stored", ["heads first", "part", "odd strides", "expanded"])
def test_strides_do_not_matter(stored):
    x = normal((2, 40, 3, 16)).bfloat16()
    x = {
        "heads first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "part": torch.cat((x, x, x), -1)[:, 3:37, 1:, 16:32],
        "odd strides": torch.cat((x, x[..., :1]), -1)[..., :16],
        "expanded": x[:, :, :1].expand(-1, -1, 3, -1),
    }[stored]
    centroids = normal((x.shape[0] * x.shape[2], 11, 16), 1)
    want = nearest(x.contiguous(), centroids, backend="triton")
    assert torch.equal(nearest(x, centroids, backend="triton"), want)


def test_tokens_that_are_not_numbers_get_a_label():
    x, centroids = normal((1, 40, 1, 16)), normal((1, 37, 16), 1)
    x[0, 3], x[0, 5, 0, 2], x[0, 7] = torch.nan, torch.inf, -torch.inf
    got = nearest(x, centroids, backend="triton")[0]
    want = nearest(torch.nan_to_num(x, 0, 0, 0), centroids, backend="triton")[0]
    assert got.min() >= 0 and got.max() < 37
    rest = torch.ones(40, dtype=torch.bool).index_fill_(0, torch.tensor([3, 5, 7]), False)
    assert torch.equal(got[rest], want[rest])
    centroids[0, 4] = torch.nan
    got = nearest(x, centroids, backend="triton")
    assert got.min() >= 0 and got.max() < 37


def test_distances_past_31_bits():
    """Of tokens, of heads and of entries; only the memory of the rows is touched. Not poisoned, which would fill it."""
    near = normal((2, 3, 2, 8)).bfloat16()
    centroids = normal((4, 5, 8), 1)
    want = nearest(near, centroids, backend="triton")
    step = (1 << 31) + 64
    for strides in ((64, 8 + step, 16, 1), (step * 2, 8, 64 + step // 2 * 2, 1), (step, 16, 8, 1)):
        size = 1 + sum((n - 1) * stride for n, stride in zip(near.shape, strides, strict=True))
        far = torch.empty(size, dtype=torch.bfloat16).as_strided(near.shape, strides)
        far.copy_(near)
        assert torch.equal(nearest(far, centroids, backend="triton"), want)


def test_nothing_to_label():
    assert nearest(torch.empty(1, 0, 2, 8), normal((2, 5, 8)), backend="triton").shape == (2, 0)


def test_it_is_the_first_choice():
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    x, centroids = normal((1, 40, 2, 16)).bfloat16(), normal((2, 11, 16), 1)
    assert torch.equal(nearest(x, centroids), nearest(x, centroids, backend="triton"))
