"""Changes of basis: products stay, weights come back; orders and turns that spread loud channels."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.turns import spreading_turns, turned_block, zigzag
from interspatial.models.quant.vidit_q import channel_mask

pytestmark = pytest.mark.usefixtures("poisoned")

PARTS = ("", "mask", "order", "turns", "mask order", "mask turns order")


def basis_of(parts: str, columns: int, block: int) -> Basis:
    draw = torch.Generator().manual_seed(columns + block)
    size = turned_block(columns)
    made = {
        "mask": torch.randn(columns, generator=draw).exp(),
        "turns": torch.linalg.qr(torch.randn(columns // size, size, size, generator=draw)).Q,
        "order": torch.randperm(columns, generator=draw).int(),
    }
    return Basis(block, **{name: x for name, x in made.items() if name in parts.split()})


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("columns", "block"), [(24, 1), (48, 16), (192, 64), (768, 256)])
def test_products_stay_and_weights_come_back(parts, columns, block):
    draw = torch.Generator().manual_seed(1)
    basis = basis_of(parts, columns, block)
    x, weight = torch.randn(2, 5, columns, generator=draw), torch.randn(7, columns, generator=draw)
    want = x.double() @ weight.double().t()
    found = basis.activation(x).double() @ basis.weight(weight).double().t()
    assert (found - want).norm() < 1e-5 * want.norm()
    assert (basis.original(basis.weight(weight)) - weight).norm() < 1e-5 * weight.norm()
    assert basis.plain == (parts == "")


def test_the_mask_comes_first_then_the_turns_then_the_order():
    mask, order = torch.tensor([1.0, 2, 4, 8]), torch.tensor([3, 0, 2, 1], dtype=torch.int32)
    swap = torch.tensor([[[0.0, 1], [1, 0]], [[1, 0], [0, 1]]])
    x = torch.tensor([[1.0, 1, 1, 1]])
    # Masked: 1 2 4 8. The first block of two is swapped: 2 1 4 8. Places 3 0 2 1 of that: 8 2 4 1.
    assert Basis(1, mask, swap, order).activation(x).tolist() == [[8, 2, 4, 1]]
    assert Basis(1, mask, swap, order).weight(1 / x).tolist() == [[1 / 8, 1 / 2, 1 / 4, 1]]


def test_activations_keep_their_dtype():
    basis = basis_of("mask turns order", 64, 16)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        found = basis.activation(x.to(dtype))
        assert found.dtype == dtype
        assert (found.double() - basis.activation(x.double())).norm() < tolerance * basis.activation(x).norm()


def test_a_mask_of_channels_that_never_move_is_safe():
    weight, peaks = torch.randn(6, 32, generator=torch.Generator().manual_seed(2)), torch.rand(32) * 50
    weight[:, 4], peaks[9], weight[:, 11], peaks[11] = 0, 0, 0, 0
    mask = channel_mask(weight, peaks, 0.5)
    assert (mask > 0).all() and mask.isfinite().all()
    back = Basis(16, mask)
    assert (back.original(back.weight(weight)) - weight).norm() < 1e-5 * weight.norm()


def test_channels_are_dealt_back_and_forth():
    loudness = torch.tensor([5.0, 40, 10, 30, 20, 0])  # by rank: 1 3 4 2 0 5; two blocks of three
    assert zigzag(loudness, 3).tolist() == [1, 2, 0, 3, 4, 5]


@pytest.mark.parametrize(("columns", "size"), [(1024, 256), (192, 64), (48, 16), (7, 7)])
def test_every_block_gets_its_share_of_loud_channels(columns, size):
    loudness = torch.randn(columns, generator=torch.Generator().manual_seed(columns)).exp()
    order = zigzag(loudness, size)
    assert order.dtype == torch.int32
    assert order.sort().values.tolist() == list(range(columns))
    blocks = loudness.log()[order.long()].view(-1, size)
    loudest = loudness.log().sort(descending=True).values[: columns // size]
    assert torch.equal(blocks.amax(1).sort(descending=True).values, loudest)
    assert blocks.mean(1).std(correction=0) < 0.1  # untouched: 0.06 to 0.25 for blocks of 256 to 16


def test_turns_spread_the_loudest_channel():
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(500, 256, generator=draw)
    x[:, [3, 130, 131]] *= torch.tensor([100.0, 20, 30])
    gram = x.t() @ x / 500
    turns = spreading_turns(gram, 128)
    assert turns.shape == (2, 128, 128)
    assert (turns @ turns.mT - torch.eye(128)).abs().max() < 1e-5
    turned = (x.view(-1, 2, 1, 128) @ turns).view(-1, 256)
    power = turned.square().mean(0).view(2, 128)
    even = gram.diagonal().view(2, 128).mean(1)
    assert (power.amax(1) < 4 * even).all()  # before: 125 and 80 times
    assert torch.equal(spreading_turns(gram, 128), turns)


def test_turns_of_blocks_of_one_and_of_even_channels():
    assert torch.equal(spreading_turns(torch.eye(3), 1), torch.ones(3, 1, 1))
    assert torch.equal(spreading_turns(torch.eye(8), 4), torch.eye(4).expand(2, 4, 4))
    assert [turned_block(k) for k in (5120, 13824, 192, 48, 7)] == [128, 128, 64, 16, 1]
