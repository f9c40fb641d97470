"""Quantised weights as ComfyUI's QuantizedTensor, every format: products, moves, copies, files, LoRA's way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.models.quant.format import FORMATS, dense
from interspatial.models.quant.stats import LayerStats
from interspatial.models.quant.weights_file import coded_layer, read_marker
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("comfy", "poisoned")

CHOICES = [(name, bits) for name, form in FORMATS.items() for bits in form.widths]
N, K = 48, 256
NEAR = {8: 5e-2, 16: 1e-5}  # relative L2 by the bits of activations; a loud channel makes steps of 8 bits wide
LOUD = 7  # channel


@pytest.fixture
def layouts():
    from interspatial.models.host import quant_layouts

    return quant_layouts


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int) -> torch.Tensor:
    """Activations with a loud channel, as the calibration below says."""
    x = drawn(*shape, K, seed=1)
    x[..., LOUD] *= 40
    return x


def a_case(layouts, name: str, bits: int) -> SimpleNamespace:
    """A weight whose activations have a loud channel, so that there are masks and orders too."""
    peaks = torch.full((1, K), 3.0)
    peaks[0, LOUD] *= 40
    coded = FORMATS[name].encode(drawn(N, K), bits, LayerStats(peaks, peaks.square() / 9))

    def make(act_bits: int = 8, dtype: torch.dtype = torch.float32):
        return layouts.as_weight(coded, dtype, act_bits)

    return SimpleNamespace(name=name, bits=bits, coded=coded, make=make, weight=make())


@pytest.fixture(params=CHOICES, ids=lambda choice: f"{choice[0]}-{choice[1]}")
def case(request, layouts):
    return a_case(layouts, *request.param)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def same(layouts, one, other) -> None:
    """Equal tensors under equal names, and the same weight."""
    one, other = (layouts.coded_of(x) for x in (one, other))
    assert (one.format, one.bits, one.shape) == (other.format, other.bits, other.shape)
    assert one.tensors().keys() == other.tensors().keys()
    assert all(torch.equal(x, other.tensors()[name]) for name, x in one.tensors().items())


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_linear(case, act_bits, mode):
    """Inside of no_grad F.linear comes apart into a transposition and a product."""
    x, bias = tokens(2, 5), drawn(N, seed=2)
    with mode():
        weight = case.make(act_bits)
        truth = dense(case.coded).double()
        for rows in (x, x[0], x[:, ::2]):
            for b in (None, bias):
                got = F.linear(rows, weight, b)
                want = rows.double() @ truth.t() + (0 if b is None else b.double())
                assert type(got) is torch.Tensor and got.shape == want.shape and relative(got, want) < NEAR[act_bits]


@pytest.mark.usefixtures("inference")
def test_dequantize_is_in_the_original_basis(case):
    assert relative(case.weight.dequantize(), dense(case.coded).double()) < 1e-6
    assert relative(case.weight.dequantize(), drawn(N, K).double()) < 1  # in another basis it is 1.4
    assert case.make(dtype=torch.bfloat16).dequantize().dtype == torch.bfloat16


@pytest.mark.usefixtures("inference")
def test_other_arithmetic_is_that_of_the_decoded_weight(case):
    whole = dense(case.coded)
    assert torch.allclose(case.weight + 1, whole + 1, atol=1e-5)
    assert torch.allclose(case.weight.abs().sum(), whole.abs().sum())


@pytest.mark.usefixtures("inference")
def test_transposed(case, layouts):
    flipped = case.weight.t()
    assert flipped.shape == (K, N) and flipped.t().shape == (N, K)
    same(layouts, flipped.t(), case.weight)
    assert torch.equal(flipped.dequantize(), case.weight.dequantize().t())
    x = tokens(3)
    assert relative(x @ flipped, x.double() @ dense(case.coded).double().t()) < NEAR[8]


@pytest.mark.usefixtures("inference")
def test_copies_share_nothing(case, layouts):
    for copy in (case.weight.clone(), torch.nn.Parameter(case.weight, requires_grad=False).clone()):
        same(layouts, copy, case.weight)
        given = case.coded.tensors()
        assert all(x.data_ptr() != given[name].data_ptr() for name, x in layouts.coded_of(copy).tensors().items())


@pytest.mark.usefixtures("inference")
def test_copy_into_another(case, layouts):
    """As ComfyUI writes a patched weight back."""
    other = layouts.as_weight(FORMATS[case.name].recode(case.coded, drawn(N, K, seed=9)), torch.float32, 8)
    into = case.weight.clone()
    into.copy_(other)
    same(layouts, into, other)
    assert torch.equal(into.dequantize(), other.dequantize())


@pytest.mark.usefixtures("inference")
def test_moves(case, layouts):
    same(layouts, case.weight.to("cpu"), case.weight)
    half = case.weight.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.dequantize().dtype == torch.bfloat16
    same(layouts, half, case.weight)
    away = case.weight.to("meta")
    assert {x.device.type for x in layouts.coded_of(away).tensors().values()} == {"meta"}
    assert away.shape == (N, K)


@pytest.mark.usefixtures("inference")
def test_room_for_another(case, layouts):
    empty = torch.empty_like(case.weight)
    assert empty.shape == (N, K) and layouts.is_coded(empty)
    empty.copy_(case.weight)
    same(layouts, empty, case.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU, and there is none")
@pytest.mark.usefixtures("inference")
def test_pinned(case, layouts):
    pinned = {name: x.pin_memory() for name, x in case.coded.tensors().items()}
    assert all(x.is_pinned() for x in pinned.values())
    same(layouts, case.weight.to("cuda").to("cpu"), case.weight)


def test_taken_apart_and_put_together(case, layouts):
    """As torch.compile does."""
    names, context = case.weight.__tensor_flatten__()
    parts = {name: getattr(case.weight, name) for name in names}
    again = type(case.weight).__tensor_unflatten__(parts, context, case.weight.shape, case.weight.stride())
    same(layouts, again, case.weight)


@pytest.mark.usefixtures("inference")
def test_a_state_dict_gives_it_back(case, layouts):
    state = case.weight.state_dict("layer.weight")
    conf = read_marker("layer", layouts.marker_of(case.weight))
    if conf["format"].startswith("interspatial_"):
        tensors = {name.removeprefix("layer.weight"): x for name, x in state.items()}
        again = coded_layer("layer", conf, tensors)
        same(layouts, layouts.as_weight(again, torch.float32, conf["act_bits"]), case.weight)
    else:
        assert set(state) == {"layer.weight", "layer.weight_scale"}  # ComfyUI's own format


@pytest.mark.usefixtures("inference")
def test_requantized(case, layouts):
    """Another weight in the same basis, as a LoRA leaves it; what has not changed stays what it was."""
    back = case.weight.requantize_from_float(case.weight.dequantize())
    assert relative(back.dequantize(), case.weight.dequantize().double()) < 1e-3
    changed = case.weight.dequantize() + 2 * drawn(N, K, seed=8)
    again = case.weight.requantize_from_float(changed)
    assert layouts.is_coded(again) and again._params.act_bits == case.weight._params.act_bits
    before, after = (relative(x.dequantize(), changed.double()) for x in (case.weight, again))
    assert after < before
    kept, new = layouts.coded_of(case.weight).basis, layouts.coded_of(again).basis
    assert kept.block == new.block and (kept.mask is None or torch.equal(kept.mask, new.mask))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("inference")
def test_torch_compile_takes_a_layer_as_one_operation(name, layouts):
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def look(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    case, x, bias = a_case(layouts, name, FORMATS[name].widths[0]), tokens(5), drawn(N, seed=2)
    for act_bits in (8, 16):
        weight = case.make(act_bits)

        def layer(x, weight=weight):
            return F.linear(x, weight, bias) + weight.dequantize().sum()

        torch._dynamo.reset()
        got = torch.compile(layer, backend=aot_autograd(fw_compiler=look), fullgraph=True)(x)
        assert torch.equal(got, layer(x))
    assert [sum(word in name for name in seen) for word in ("quant_linear", "quant_dense")] == [2, 2]
    torch._dynamo.reset()
