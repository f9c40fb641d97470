"""Interspatial attention against a plain float64 version of its formulas, and what it must not see."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.nets import position_code as code
from interspatial.models.nets.interspatial_attention import POSITIONS, InterspatialAttention, attend, places_of

W, H, OUT = 48, 4, 20


def made(symmetric: bool = True, seed: int = 0) -> InterspatialAttention:
    net = InterspatialAttention(W, H, symmetric, OUT).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for value in net.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + (value.ndim == 1))
    return net


def inputs(frames: int, h: int, w: int, points: int, seed: int = 1):
    """Pixels, points, their places and which are usable; the last frame has none."""
    g = torch.Generator().manual_seed(seed)
    place = torch.rand(frames, points, 3, generator=g) * 2 - 1
    usable = torch.rand(frames, points, generator=g) < 0.7
    usable[-1] = False
    return torch.randn(frames, h * w, W, generator=g), torch.randn(frames, points, W, generator=g), place, usable


def truth(direction, kind, asking, giving, places, usable) -> torch.Tensor:
    """One direction, written out in float64. places: of those who ask and of those who give"""
    net = direction.double()
    a, g = asking.double(), giving.double()
    if kind == "additive":
        a, g = (x + code.additive(p, W, *places[2]).double() for x, p in zip((a, g), places[:2], strict=True))
    q, k, v = (layer(x).unflatten(-1, (H, -1)) for layer, x in ((net.q, a), (net.k, g), (net.v, g)))
    q, k = net.q_norm(q), net.k_norm(k)
    if kind == "rotary":
        q, k = (code.turn(x, *(t.double() for t in code.rotary(p, W // H, *places[2])))
                for x, p in zip((q, k), places[:2], strict=True))  # fmt: skip
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) * (W // H) ** -0.5
    if usable is not None:
        score = score.masked_fill(~usable[:, None, None], -1e30)
    return net.o(torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), v).flatten(-2))


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize(("frames", "h", "w", "points"), [(3, 4, 6, 11), (2, 5, 3, 1)])
def test_both_directions_are_their_formulas(kind, frames, h, w, points):
    pixels, body, place, usable = inputs(frames, h, w, points)
    net = made()
    seen, told = net(pixels, body, places_of(kind, place, usable, h, w, W, H))
    grid = code.token_centres(h, w).expand(frames, -1, -1)
    wanted = truth(net.render, kind, pixels, body, (grid, place, (h, w)), usable)
    wanted[-1] = 0
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-4, atol=1e-4)
    back = truth(net.rebuild, kind, body, pixels, (place, grid, (h, w)), None)
    torch.testing.assert_close(told.double(), back, rtol=1e-4, atol=1e-4)


def test_a_frame_without_points_gets_exactly_nothing(poisoned):
    pixels, body, place, usable = inputs(3, 4, 6, 11)
    seen, _ = made()(pixels, body, places_of("rotary", place, usable, 4, 6, W, H))
    assert not seen[-1].any()
    assert seen[:-1].abs().amin(dim=(1, 2)).isfinite().all()
    assert seen[:-1].any()


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_5_points_that_are_not_usable_change_nothing(kind, dtype):
    """A hundred more of them, with places and contents of all kinds."""
    pixels, body, place, usable = inputs(3, 4, 6, 11)
    g = torch.Generator().manual_seed(9)
    more = torch.randn(3, 100, W, generator=g) * 5, torch.randn(3, 100, 3, generator=g)
    net = made().to(dtype)
    few, _ = net(pixels.to(dtype), body.to(dtype), places_of(kind, place, usable, 4, 6, W, H))
    places = places_of(kind, torch.cat([place, more[1]], 1), torch.cat([usable, torch.zeros(3, 100).bool()], 1),
                       4, 6, W, H)  # fmt: skip
    many, _ = net(pixels.to(dtype), torch.cat([body, more[0]], 1).to(dtype), places)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(many, few, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", POSITIONS)
def test_4_points_in_another_order_give_the_same(kind):
    pixels, body, place, usable = inputs(3, 4, 6, 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    net = made()
    seen, told = net(pixels, body, places_of(kind, place, usable, 4, 6, W, H))
    again, back = net(pixels, body[:, order], places_of(kind, place[:, order], usable[:, order], 4, 6, W, H))
    torch.testing.assert_close(again, seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back, told[:, order], rtol=1e-4, atol=1e-5)


def test_4_clips_in_another_order_give_the_same():
    pixels, body, place, usable = inputs(3, 4, 6, 11)
    net, order = made(), [2, 0, 1]
    seen, _ = net(pixels, body, places_of("rotary", place, usable, 4, 6, W, H))
    again, _ = net(pixels[order], body[order], places_of("rotary", place[order], usable[order], 4, 6, W, H))
    torch.testing.assert_close(again, seen[order], rtol=1e-4, atol=1e-5)


def test_one_way_leaves_the_points_alone():
    pixels, body, place, usable = inputs(2, 4, 6, 5)
    seen, told = made(symmetric=False)(pixels, body, places_of("additive", place, usable, 4, 6, W, H))
    assert told is None
    assert seen.shape == (2, 24, OUT)


@pytest.mark.parametrize("kind", POSITIONS)
def test_folded_places_may_be_kept(kind):
    pixels, body, place, usable = inputs(3, 4, 6, 11)
    net, places = made(), places_of(kind, place, usable, 4, 6, W, H)
    kept = net.fold(places)
    for a, b in zip(net(pixels, body, places, kept), net(pixels, body, places), strict=True):
        assert torch.equal(a, b)


def test_unknown_codes_are_refused():
    with pytest.raises(ValueError, match=r"'polar' is not known\. Accepted: rotary, additive, none"):
        places_of("polar", torch.zeros(1, 1, 3), torch.ones(1, 1).bool(), 2, 2, W, H)


def test_attention_by_torch_is_softmax_with_a_bias(poisoned):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 5, generator=g) for n in (7, 4, 4))
    bias = torch.randn(2, 1, 1, 4, generator=g)
    score = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * 5**-0.5 + bias
    wanted = torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), v.double())
    torch.testing.assert_close(attend(q, k, v, bias).double(), wanted, rtol=1e-5, atol=1e-5)
