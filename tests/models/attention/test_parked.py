"""Tensors that wait: what 8 bits cost, and where they wait."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.attention import parked
from interspatial.models.attention.parked import RAM, Parked, eight_bits, parked_bytes, waiting_place

pytestmark = pytest.mark.usefixtures("poisoned")

META = torch.device("meta")  # stands for a device that is not the CPU


def rows(dtype: torch.dtype) -> torch.Tensor:
    """Rows of very different size, one of zeros: [2, 30, 3, 8]."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 3, 8, generator=draw) * 10 ** torch.linspace(-3, 2, 30)[:, None, None]
    x[1, 4] = 0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_eight_bits_are_off_by_half_a_step(dtype, chunk, monkeypatch):
    monkeypatch.setattr(parked, "CHUNK_BYTES", chunk)
    x = rows(dtype)
    numbers, scale = eight_bits(x)
    assert numbers.dtype == torch.int8 and scale.dtype == dtype
    apart = (numbers.double() * scale.double() - x.double()).abs()
    assert (apart <= 0.51 * x.double().abs().amax(-1, keepdim=True) / 127 + 1e-7).all()
    assert not (numbers.double() * scale.double())[1, 4].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", [RAM, META], ids=str)
def test_what_was_put_comes_back(dtype, place):
    """At its own place, and by a copy."""
    one, x = Parked(), rows(dtype)
    for _ in range(2):  # room is used again
        x = x * 2
        one.put(x.clone(), place)
        got = one.get(RAM)
        assert got.dtype == dtype
        limit = 0 if dtype == torch.float32 else 0.008 * x.double().abs().amax(-1, keepdim=True)
        assert ((got.double() - x.double()).abs() <= limit).all()
    one.put(x[:1, :7], place)
    assert one.get(RAM).shape == (1, 7, 3, 8)


def test_bytes():
    assert parked_bytes((2, 30, 3, 8), torch.float32) == 4 * 1440
    assert parked_bytes((2, 30, 3, 8), torch.bfloat16) == 1440 + 2 * 180


@pytest.mark.parametrize(
    ("where", "total", "place"),
    [("auto", 90, META), ("auto", 110, RAM), ("auto", 310, None), ("gpu", 110, None), ("cpu", 90, RAM)],
)
def test_the_first_place_that_has_room(where, total, place, monkeypatch):
    monkeypatch.setattr(parked, "_room", lambda device: {"meta": 100, "cpu": 300}[device.type])
    assert waiting_place(where, total, META) == place


def test_room_in_ram_is_a_share_of_what_is_free():
    assert waiting_place("auto", 1, RAM) == RAM
    assert waiting_place("auto", 1 << 60, RAM) is None
    assert waiting_place("gpu", 1, META) is None, "a device that does not tell"
