"""Triton's block means against the torch backend and a float64 loop.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.pool_blocks import BACKENDS, PoolCall, pool_blocks, pool_squares
from interspatial.tests.kernels.test_pool_blocks import B, H, bias_of, naive, ragged

pytestmark = pytest.mark.usefixtures("interpreter")

DTYPES = torch.float32, torch.bfloat16, torch.float16


def some(tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(B, tokens, H, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("heads", [1, B * H], ids=["shared", "per head"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_matches_a_float64_loop(dtype, heads, with_bias):
    for tokens, dim in ((1, 8), (17, 24), (6, 256)):
        slots, x = ragged(tokens, heads), some(tokens, dim, dtype)
        bias = bias_of(tokens, slots) if with_bias else None
        true = *naive(x, slots, bias), naive(x.double().square(), slots, bias)[0]
        got = pool_squares(x, slots, bias, backend="triton")
        for one, want in zip(got, true, strict=True):
            torch.testing.assert_close(one.double(), want, atol=4e-6, rtol=2e-6)
        for one, want in zip(pool_blocks(x, slots, bias, backend="triton"), got, strict=False):
            assert torch.equal(one, want)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_blocks_of_one_step_and_of_several(size):
    """The highest bias stands in the last step."""
    slots = torch.randperm(size, generator=torch.Generator().manual_seed(0)).int().view(1, 1, size)
    x, bias = some(size, 128), torch.full((B, size), -2.0)
    bias[:, slots[0, 0, -1].long()] = 1.5
    for key_bias in (None, bias):
        for got, want in zip(pool_blocks(x, slots, key_bias, backend="triton"), naive(x, slots, key_bias), strict=True):
            torch.testing.assert_close(got.double(), want, atol=4e-6, rtol=2e-6)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("stored", ["B H N D", "fused", "odd rows"])
def test_strides_do_not_matter(stored):
    x, slots = some(30, 16), ragged(30)
    want, mass = pool_blocks(x, slots, backend="triton")
    if stored == "B H N D":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif stored == "fused":
        x = torch.stack((x, -x), 2)[:, :, 0]
    else:  # rows of D + 1 numbers: their distance is not a multiple of 8
        x = torch.cat((x, x[..., :1]), -1)[..., :-1]
    got = pool_blocks(x, slots, backend="triton")
    assert not x.is_contiguous() and torch.equal(got[0], want) and torch.equal(got[1], mass)


def test_tokens_past_31_bits():
    """120,000 tokens that lie 20,480 numbers apart; not poisoned, which would fill all 5 GB."""
    tokens, step = 120_000, 20_480
    x = torch.empty(tokens * step, dtype=torch.bfloat16).as_strided((1, tokens, 1, 8), (tokens * step, step, 8, 1))
    slots = torch.tensor([[[0, tokens - 1, -1], [tokens - 2, -1, -1]]], dtype=torch.int32)
    x[:, 0], x[:, -1], x[:, -2] = 1.0, 3.0, 5.0
    mean, _ = pool_blocks(x, slots, backend="triton")
    assert mean[0, :, 0, 0].tolist() == [2.0, 5.0]


def test_it_is_the_first_choice():
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    call = PoolCall(some(9, 8), ragged(9))
    assert BACKENDS.reasons(call) == {"triton": None, "torch": None}
    assert "head dim is 12" in BACKENDS.reasons(PoolCall(some(9, 12), ragged(9)))["triton"]
    assert "float64" in BACKENDS.reasons(PoolCall(some(9, 8, torch.float64), ragged(9)))["triton"]
