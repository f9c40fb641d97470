"""The Triton backend of the int8 linear layer against float64.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import round_rows, triton_int8
from interspatial.kernels.int8_linear import BACKENDS, int8_linear, int8_linear_reference
from interspatial.kernels.triton_int8 import Tile, Tuner

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

ROUND = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}  # of the largest output
# tokens, inputs, outputs, block: one tile, ragged on all sides, inputs past a step
CASES = [((16, 32), 32, 16), ((19, 64), 41, 64), ((2, 3, 80), 33, 16), ((1, 256), 24, 256), ((0, 64), 8, 1)]


@pytest.mark.parametrize("dtype", ROUND, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_matches_float64(case, dtype):
    shape, outputs, block = case
    draw = torch.Generator().manual_seed(outputs)
    weight = torch.randint(-127, 128, (outputs, shape[-1]), generator=draw, dtype=torch.int8)
    scale, mask = torch.rand(outputs, 1, generator=draw) + 0.1, torch.rand(shape[-1], generator=draw) + 0.5
    x, bias = torch.randn(shape, generator=draw).to(dtype), 100 * torch.randn(outputs, generator=draw).to(dtype)
    for b, m in ((None, None), (bias, None), (bias, mask)):
        got = int8_linear(x, weight, scale, b, block, m, backend="triton")
        want = int8_linear_reference(x.double(), weight, scale, b, block, m)
        assert got.dtype == dtype and got.shape == want.shape
        assert not want.numel() or (got.double() - want).norm() <= ROUND[dtype] * want.norm()


def test_bands_of_tiles_cover_the_result(monkeypatch):
    """More rows of tiles than a band has, the last band short; whole numbers come out exactly."""
    monkeypatch.setattr(triton_int8, "INTERPRETED", (Tile(16, 16, 16, 4, 1),))
    monkeypatch.setattr(triton_int8, "TUNER", Tuner())
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (16 * 10 + 3, 16), generator=draw)
    x[:, 0] = 127
    weight = torch.randint(-127, 128, (40, 16), generator=draw)
    got = int8_linear(x.float(), weight.to(torch.int8), torch.ones(40, 1), None, 1, backend="triton")
    assert got.tolist() == (x @ weight.t()).tolist()


def test_it_is_the_first_choice_here():
    x, weight = torch.randn(3, 16), torch.ones(8, 16, dtype=torch.int8)
    got = int8_linear(x, weight, torch.ones(8, 1), None, 16)
    assert torch.equal(got, int8_linear(x, weight, torch.ones(8, 1), None, 16, backend="triton"))
    assert not BACKENDS.failures and not round_rows.BACKENDS.failures, "it did not run in Triton"


def test_ragged_inputs_are_for_torch():
    weight = torch.ones(8, 24, dtype=torch.int8)
    with pytest.raises(ValueError, match="no multiple of 16"):
        int8_linear(torch.randn(3, 24), weight, torch.ones(8, 1), None, 1, backend="triton")
