"""The Triton backend that rotates rows and rounds them, against float64.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.block_hadamard import rotate_reference
from interspatial.kernels.round_rows import BACKENDS, round_rows, round_rows_reference

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

# tokens, channels, block: less than the smallest program, ragged, beyond what is kept whole
CASES = [(2, 16, 16), (3, 64, 64), (2, 1280, 256), (1, 24, 1), (2, 8960, 256), (1, 8256, 64), (0, 256, 256)]


def check(got, x, mask, block) -> None:
    codes, steps = got
    exact = rotate_reference(x.double() if mask is None else x.double() * mask.double(), block)
    torch.testing.assert_close(steps, round_rows_reference(x, mask, block)[1], rtol=1e-5, atol=0)
    assert codes.dtype == torch.int8
    assert ((codes.double() * steps - exact).abs() <= (0.5 + 2e-3) * steps).all()
    assert codes.abs().amax(1).eq(127).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_matches_float64(case, dtype):
    tokens, columns, block = case
    draw = torch.Generator().manual_seed(columns)
    x, mask = torch.randn(tokens, columns, generator=draw).to(dtype), torch.rand(columns, generator=draw) + 0.5
    if not tokens:
        assert round_rows(x, mask, block, backend="triton")[0].shape == (0, columns)
        return
    check(round_rows(x, None, block, backend="triton"), x, None, block)
    check(round_rows(x, mask, block, backend="triton"), x, mask, block)


def test_halves_go_to_even_numbers():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 0.0]])
    assert round_rows(x, None, 1, backend="triton")[0].tolist() == [[127, 0, 2, 2, 0, -2, 126, 0]]


def test_rows_apart_and_zeros():
    wide = torch.randn(4, 600)
    wide[2] = 0
    for x in (wide[:, 5:261], wide[:, ::2][:, :256]):
        codes, steps = round_rows(x, None, 256)
        assert not codes[2].any() and steps.gt(0).all()
        check((codes[:2], steps[:2]), x[:2], None, 256)
    assert not BACKENDS.failures, "it did not run in Triton"


def test_float16_at_its_end():
    x = torch.full((1, 256), 60000.0).half()
    check(round_rows(x, torch.full((256,), 3.0), 256, backend="triton"), x, torch.full((256,), 3.0), 256)
