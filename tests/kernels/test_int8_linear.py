"""The int8 linear layer against float64, and what is refused. Triton: interpreted_triton_int8.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels import int8_linear as module
from interspatial.kernels import kitchen_int8
from interspatial.kernels.int8_linear import BACKENDS, LinearCall, how, int8_linear, int8_linear_reference

pytestmark = pytest.mark.usefixtures("poisoned")

ROUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest output
CASES = [((5, 48), 24, 16), ((33, 256), 40, 256), ((2, 7, 320), 17, 64), ((1, 24), 8, 1), ((0, 256), 8, 256),
         ((64,), 8, 64)]  # fmt: skip
PLAIN = ["torch", "float32"]


def some(shape: tuple[int, ...], outputs: int, dtype: torch.dtype = torch.float32):
    """x, weight, scale, bias, mask"""
    draw = torch.Generator().manual_seed(outputs)
    weight = torch.randint(-127, 128, (outputs, shape[-1]), generator=draw, dtype=torch.int8)
    scale = torch.rand(outputs, 1, generator=draw) + 0.1
    bias = 100 * torch.randn(outputs, generator=draw)
    mask = torch.rand(shape[-1], generator=draw) + 0.5
    return torch.randn(shape, generator=draw).to(dtype), weight, scale, bias.to(dtype), mask


def check(got: torch.Tensor, x, weight, scale, bias, block, mask) -> None:
    """As the reference, but for activations that lie between two codes: one step of one input in a million."""
    want = int8_linear_reference(x.double(), weight, scale, bias, block, mask)
    assert got.dtype == x.dtype and got.shape == (*x.shape[:-1], weight.shape[0]) and got.is_contiguous()
    if want.numel():
        assert (got.double() - want).norm() <= ROUND[x.dtype] * want.norm()


@pytest.mark.parametrize("dtype", ROUND, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", PLAIN)
def test_it_matches_float64(backend, case, dtype, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", {"cpu": 1})  # parts of 32 tokens
    shape, outputs, block = case
    x, weight, scale, bias, mask = some(shape, outputs, dtype)
    for given in ((None, None), (bias, None), (bias, mask)):
        got = int8_linear(x, weight, scale, given[0], block, given[1], backend=backend)
        check(got, x, weight, scale, given[0], block, given[1])


def test_whole_numbers_are_exact():
    """Rows whose largest number is 127 have steps of 1: the product of integers itself, at the ends of int8 too."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (40, 512), generator=draw)
    x[:, 0] = 127
    weight = torch.randint(-127, 128, (24, 512), generator=draw)
    x[0], weight[0], weight[1] = 127, 127, -127
    for backend in PLAIN:
        got = int8_linear(x.float(), weight.to(torch.int8), torch.ones(24, 1), None, 1, backend=backend)
        assert got.tolist() == (x @ weight.t()).tolist()


def test_tokens_do_not_see_each_other():
    """A few tokens go the way of many: together or one by one they give the same numbers."""
    x, weight, scale, bias, mask = some((70, 256), 16)
    whole = int8_linear(x, weight, scale, bias, 256, mask)
    assert torch.equal(whole, torch.cat([int8_linear(row[None], weight, scale, bias, 256, mask) for row in x]))


def test_strides_do_not_matter():
    x, weight, scale, bias, _ = some((3, 12, 512), 16)
    for part in (x[:, ::2, :256], x.transpose(0, 1)[..., 256:], x[..., ::2]):
        check(int8_linear(part, weight[:, :256], scale, bias, 256), part, weight[:, :256], scale, bias, 256, None)


def test_modes_of_autograd():
    given = some((9, 64), 16)
    want = int8_linear_reference(given[0], *given[1:4], 64)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x, weight, scale, bias = (t.clone() for t in given[:4])
            assert torch.allclose(int8_linear(x, weight, scale, bias, 64), want, rtol=1e-4)


def test_weights_are_multiplied_as_they_lie(monkeypatch):
    """No transposed copy: the product gets a view of the weight itself."""
    x, weight, scale, bias, _ = some((9, 64), 16)
    seen, product = [], torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: seen.append(b) or product(a, b))
    int8_linear(x, weight, scale, bias, 64, backend="torch")
    assert [b.data_ptr() for b in seen] == [weight.data_ptr()]


def test_a_cpu_without_int8_products(monkeypatch):
    given = some((9, 64), 16)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    check(int8_linear(*given[:4], 64), *given[:4], 64, None)
    assert how(*given[:4], 64) == "products in float32: this CPU has no int8 products (AVX-512 VNNI)"
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert how(*given[:4], 64) == "int8 products by torch"


def on_a_gpu(call: LinearCall) -> LinearCall:
    """Shapes and dtypes of the call as kitchen sees them; meta tensors have no values to wait for."""
    x = SimpleNamespace(device=SimpleNamespace(type="cuda"), numel=call.x.numel, dtype=call.x.dtype, shape=call.x.shape)
    return LinearCall(x, call.weight, call.scale, call.bias, call.block, None)


@pytest.mark.parametrize(("chosen", "says"), [("cuda", None), ("triton", None), ("eager", "in plain torch")])
def test_kitchen_is_asked_for_kernels_alone(chosen, says, monkeypatch):
    pytest.importorskip("comfy_kitchen")
    asked = []
    kitchen = SimpleNamespace(
        NoCapableBackendError=KeyError,
        registry=SimpleNamespace(get_capable_backend=lambda name, given: asked.append((name, given)) or chosen),
    )
    monkeypatch.setattr(kitchen_int8, "_kitchen", lambda: (kitchen, ""))
    given = some((9, 64), 16)
    reason = kitchen_int8.why_not(on_a_gpu(LinearCall(*given[:4], 64, None)))
    assert (says is None and reason is None) or says in reason
    assert asked[0][0] == "int8_linear" and asked[0][1]["convrot"] and asked[0][1]["convrot_groupsize"] == 64


def test_kitchen_computes_the_same():
    """Its backend in plain torch, which has the arithmetic of its kernels."""
    pytest.importorskip("comfy_kitchen")
    for dtype in ROUND:
        x, weight, scale, bias, mask = some((40, 256), 24, dtype)
        got = kitchen_int8.linear(LinearCall(x, weight, scale, bias, 256, mask))
        want = int8_linear_reference(x.double(), weight, scale, bias, 256, mask)
        assert got.dtype == dtype and (got.double() - want).norm() <= 2e-2 * want.norm()


def test_without_kitchen(monkeypatch):
    monkeypatch.setattr(kitchen_int8, "_kitchen", lambda: (None, "comfy_kitchen cannot be imported"))
    given = some((9, 64), 16)
    check(int8_linear(*given[:4], 64), *given[:4], 64, None)
    assert kitchen_int8.why_not(on_a_gpu(LinearCall(*given[:4], 64, None))) == "comfy_kitchen cannot be imported"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.ones(3, 64, dtype=torch.float64)}, "torch.float64"),
        ({"weight": torch.ones(16, 64)}, r"torch.float32 \[16, 64\]"),
        ({"weight": torch.ones(16, 32, dtype=torch.int8)}, r"it takes int8 \[N, 64\]"),
        ({"scale": torch.ones(1)}, "1 scales for 16 outputs"),
        ({"bias": torch.ones(3)}, "3 biases for 16 outputs"),
        ({"block": 256}, "256 does not divide the 64 inputs"),
    ],
)
def test_what_is_refused(change, says):
    x, weight, scale, bias, _ = some((9, 64), 16)
    given = {"x": x, "weight": weight, "scale": scale, "bias": bias, "block": 64} | change
    with pytest.raises(ValueError, match=says):
        int8_linear(**given)


def test_backends(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert [backend.name for backend in BACKENDS.backends] == ["comfy_kitchen", "triton", "torch", "float32"]
    for name, says in (("triton", r"\(TRITON_INTERPRET=1\)"), ("comfy_kitchen", "no kernels for the CPU")):
        with pytest.raises(ValueError, match=rf"{name} backend .* {says}"):
            int8_linear(*some((9, 64), 16)[:4], 64, backend=name)
