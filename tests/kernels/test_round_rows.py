"""Rows rotated and rounded to int8, and the rotation, against float64. Triton: interpreted_triton_round_rows.py."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import block_hadamard
from interspatial.kernels import round_rows as module
from interspatial.kernels.block_hadamard import hadamard, rotate, rotate_reference
from interspatial.kernels.round_rows import BACKENDS, round_rows, round_rows_reference

pytestmark = pytest.mark.usefixtures("poisoned")

CASES = [(1, 16, 16), (7, 64, 64), (33, 256, 256), (5, 1536, 256), (3, 24, 1), (9, 8960, 256), (0, 256, 256)]


def rows(tokens: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(columns)
    x = torch.randn(tokens, columns, generator=draw)
    x[:, 3] *= 50  # an outlier channel
    return x.to(dtype)


def check(got, x, mask, block) -> None:
    """Within half a step of float64, and the steps within float32's rounding."""
    codes, steps = got
    wanted, step = round_rows_reference(x, mask, block)
    assert codes.dtype == torch.int8 and steps.dtype == torch.float32
    assert codes.shape == wanted.shape and steps.shape == step.shape
    if not x.numel():
        return
    torch.testing.assert_close(steps, step, rtol=1e-5, atol=0)
    exact = rotate_reference(x.double() if mask is None else x.double() * mask.double(), block)
    assert ((codes.double() * steps - exact).abs() <= (0.5 + 2e-3) * steps).all()
    assert codes.abs().amax(1).eq(127).all()


@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_matches_float64(case, dtype, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 4 * 256)
    monkeypatch.setattr(block_hadamard, "AT_ONCE", 5 * 256)
    tokens, columns, block = case
    x, mask = rows(tokens, columns, dtype), torch.rand(columns) + 0.5
    check(round_rows(x, None, block), x, None, block)
    check(round_rows(x, mask, block), x, mask, block)


def test_a_closed_form():
    """One channel alone spreads alike over its block: everything is 127 or -127, the step 1/16 of it over 127."""
    x = torch.zeros(2, 512)
    x[0, 5], x[1, 300] = 32.0, -8.0
    codes, steps = round_rows(x, None, 256)
    assert codes[0, :256].abs().eq(127).all() and not codes[0, 256:].any()
    assert codes[1, 256:].abs().eq(127).all() and not codes[1, :256].any()
    assert torch.allclose(steps, torch.tensor([[2.0], [0.5]]) / 127)


def test_rows_of_zeros_stay_zeros():
    codes, steps = round_rows(torch.zeros(3, 64), None, 64)
    assert not codes.any() and steps.gt(0).all()


def test_float16_at_its_end_does_not_overflow():
    x = torch.full((2, 256), 60000.0).half()
    codes, steps = round_rows(x, torch.full((256,), 3.0), 256)
    check((codes, steps), x, torch.full((256,), 3.0), 256)
    assert steps.isfinite().all()


def test_strides_do_not_matter():
    wide = rows(6, 512)
    for x in (wide[:, ::2], wide[:, 100:356], wide.t()[:256, :6].t(), wide[:1, :256].expand(4, 256)):
        check(round_rows(x, None, 256), x, None, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "size"), [((3, 512), 256), ((2, 5, 768), 256), ((4, 64), 16), ((0, 256), 256)])
def test_the_fast_rotation_is_the_plain_one(shape, size, dtype, monkeypatch):
    monkeypatch.setattr(block_hadamard, "AT_ONCE", 3 * 256)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = rotate(x, size)
    assert got.dtype == dtype and got.shape == x.shape
    error = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert (got.double() - rotate_reference(x.double(), size)).abs().le(error * 8).all()


def test_the_rotation_is_its_own_inverse():
    x = torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(rotate(rotate(x, 256), 256), x, atol=1e-5)
    assert torch.equal(torch.kron(*[hadamard(16, x.device, x.dtype)] * 2), hadamard(256, x.device, x.dtype))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: round_rows(torch.ones(3), None, 1), "with 1 dims"),
        (lambda: round_rows(torch.ones(3, 16).double(), None, 1), "torch.float64"),
        (lambda: round_rows(torch.ones(3, 24), None, 16), "16 does not divide the 24 channels"),
        (lambda: round_rows(torch.ones(3, 16), torch.ones(8), 16), r"the mask is \[8\]"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_backends(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    with pytest.raises(ValueError, match=r"triton backend .* \(TRITON_INTERPRET=1\)"):
        round_rows(torch.ones(3, 16), None, 16, backend="triton")
