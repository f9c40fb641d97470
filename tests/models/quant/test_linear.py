"""A linear layer with a quantised weight: both activation widths, every format and basis, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.kernels import kitchen_int8, triton_device
from interspatial.kernels.int8_linear import int8_linear_reference
from interspatial.models.quant import linear as module
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.format import FORMATS, dense
from interspatial.models.quant.linear import linear, told
from interspatial.models.quant.uniform import encode_uniform

pytestmark = pytest.mark.usefixtures("poisoned")

ROUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}  # relative L2
CHOICES = [(name, bits) for name, form in FORMATS.items() for bits in form.widths]
N, K = 40, 512


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def based(kind: str, bits: int = 4):
    """A weight in a basis of that kind."""
    mask, order = drawn(K).abs() + 0.5, torch.randperm(K, generator=torch.Generator().manual_seed(1)).int()
    turns = torch.linalg.qr(drawn(K // 32, 32, 32)).Q
    basis = {
        "plain": Basis(), "rotated": Basis(256), "masked": Basis(64, mask), "ordered": Basis(16, None, None, order),
        "masked and ordered": Basis(256, mask, None, order), "turned": Basis(256, mask, turns, order),
        "turned in halves": Basis(256, mask, turns.half(), order),
    }[kind]  # fmt: skip
    return encode_uniform("rtn", drawn(N, K, seed=2), bits, basis, clip=False)


KINDS = ["plain", "rotated", "masked", "ordered", "masked and ordered", "turned", "turned in halves"]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize(("name", "bits"), CHOICES)
def test_every_format(name, bits):
    """As the decoded weight, activations as they are; and within the error of rounding them to 8 bits."""
    coded = FORMATS[name].encode(drawn(N, K), bits)
    x, bias = drawn(2, 9, K, seed=3), drawn(N, seed=4)
    want = x.double() @ dense(coded).double().t() + bias.double()
    assert relative(linear(x, coded, bias, 16), want) < 1e-5
    assert 1e-4 < relative(linear(x, coded, bias, 8), want) < 2e-2


@pytest.mark.parametrize("dtype", ROUND, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_basis(kind, dtype, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", {"cpu": 7 * K})  # parts of 7 rows, the last one short
    monkeypatch.setattr(module, "TURNED", 4 * K)
    coded, x = based(kind), drawn(11, K, seed=3).to(dtype)
    want = x.double() @ dense(coded).double().t()
    for few_or_many in (x, x.repeat(5, 1)):  # more activations than weights: the weight comes to their basis
        got = linear(few_or_many, coded, None, 16)
        assert got.dtype == dtype and relative(got[:11], want) < ROUND[dtype]
    integers, scale = FORMATS["rtn"].integers(coded)
    turned = coded.basis.before_rotation(x.float())
    exact = int8_linear_reference(turned.double(), integers, scale, None, coded.basis.block)
    got = linear(x, coded, None, 8)
    assert got.dtype == dtype and relative(got, exact) < 3 * ROUND[dtype]


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("kind", ["masked", "turned"])
@pytest.mark.parametrize("shape", [(K,), (1, K), (0, K), (2, 0, K), (2, 3, K), (2, 3, 5, K)], ids=str)
def test_shapes(shape, kind, act_bits):
    coded, x, bias = based(kind), drawn(*shape), drawn(N)
    for b in (None, bias, bias.bfloat16()):
        got = linear(x, coded, b, act_bits)
        want = x.double() @ dense(coded).double().t() + (0 if b is None else b.double())
        assert got.shape == (*shape[:-1], N) and got.dtype == x.dtype
        assert not got.numel() or relative(got, want) < {8: 3e-2, 16: 1e-3}[act_bits]


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(kind, act_bits):
    coded, wide = based(kind), drawn(4, 6, 2 * K)
    for x in (wide[..., :K], wide[..., ::2], wide[:, ::2, K:], wide[..., :K].transpose(0, 1)):
        before = x.clone()
        together = linear(x.contiguous(), coded, None, act_bits)
        assert torch.allclose(linear(x, coded, None, act_bits), together, atol=1e-4)
        assert torch.equal(x, before), "the input was written to"


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_float16_does_not_overflow_on_the_way(kind, act_bits):
    """Activations of 30000, all alike: a rotation makes 480000 of them, while the outputs stay small."""
    coded = based(kind)
    coded = replace(coded, scale=coded.scale * 1e-4)
    x = torch.full((3, K), 30000.0).half()
    want = x.double() @ dense(coded).double().t()
    assert want.abs().max() < 60000
    assert relative(linear(x, coded, None, act_bits), want) < 2e-2


@pytest.mark.parametrize("act_bits", [8, 16])
def test_modes_of_autograd(act_bits):
    coded, x, bias = based("masked"), drawn(5, K), drawn(N)
    want = linear(x, coded, bias, act_bits)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(linear(x.clone(), coded, bias, act_bits), want)


def test_it_tells_how_it_computed(monkeypatch):
    heard = []
    token = told.set(lambda *said: heard.append(said))
    try:
        coded = based("masked")
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
        linear(drawn(5, K), coded, None, 8)
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
        linear(drawn(5, K), based("turned"), None, 8)
        linear(drawn(5, K).bfloat16(), coded, None, 16)
    finally:
        told.reset(token)
    assert [said[:2] for said in heard] == [("rtn", 4)] * 3
    slower = "products in float32: this CPU has no int8 products (AVX-512 VNNI)"
    assert [said[2] for said in heard] == ["int8 products by torch", slower, "decoded to bfloat16"]
    linear(drawn(5, K), coded, None, 8)
    assert len(heard) == 3


def test_a_missing_kernel_is_told_with_its_reason(monkeypatch):
    coded = based("rotated")
    away = replace(coded, codes=coded.codes.to("meta"))
    monkeypatch.setattr(triton_device, "why_not", lambda device: "Triton cannot be used: it is not there")
    assert module._missing(away) == "; codes decoded in torch: Triton cannot be used: it is not there"
    assert not module._missing(coded) and not module._missing(replace(away, bits=8))
    monkeypatch.setattr(triton_device, "why_not", lambda device: None)
    assert not module._missing(away)


def test_without_kitchen(monkeypatch):
    monkeypatch.setattr(kitchen_int8, "_kitchen", lambda: (None, "it cannot be imported"))
    coded, x = based("rotated"), drawn(5, K)
    assert relative(linear(x, coded, None, 8), x.double() @ dense(coded).double().t()) < 2e-2


def test_prompts_together_or_apart():
    coded, x = based("masked", 8), drawn(4, 33, K)
    for act_bits, room in ((8, 0.0), (16, 1e-4)):
        whole = linear(x, coded, None, act_bits)
        apart = torch.cat([linear(part, coded, None, act_bits) for part in x.split(1)])
        assert (whole - apart).abs().max() <= room
