"""The memory of a cache: values, reuse, and where it lies. What needs a GPU is in the last lines of this file."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.cache import history
from interspatial.models.cache.history import Room, Track, brought, in_ram, told
from interspatial.models.cache.weights import newton

pytestmark = pytest.mark.usefixtures("poisoned")

PLACES = [0.9375, 0.875, 0.75, 0.5, 0.1875, 0.0625]


def line(us, u):
    return newton(us, u, 1)


def last(us, u):
    return [0.0] * (len(us) - 1) + [1.0]


def output(u: float, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Two parts that are straight lines in u, exact in bfloat16."""
    x = torch.arange(15.0).view(3, 5)
    return (4 + 16 * u * x.sign()).to(dtype), (x[:, :1] - 32 * u).to(dtype)


def filled(length: int, count: int, **options) -> Track:
    track = Track(length, **options)
    for u in PLACES[:count]:
        track.push(0, (u, u), output(u))
    return track


def addresses(track: Track) -> set[int]:
    return {part.data_ptr() for entry in track.entries for part in entry}


@pytest.mark.parametrize("where", ["device", "cpu", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_line_is_forecast_exactly(where, dtype):
    track = Track(2, where, Room(lambda device: 0))
    for u in PLACES[:4]:
        track.push(0, (u, u), output(u, dtype))
    found = track.forecast((0.25, 0.25), (line, line))
    assert all(torch.equal(x, y) for x, y in zip(found, output(0.25, dtype), strict=True))


def test_each_part_has_its_own_place_and_weights():
    track = Track(2)
    for u in PLACES[:2]:
        track.push(0, (u, 2 * u), (output(u)[0], output(2 * u)[1]))
    found = track.forecast((0.5, 0.25), (last, line))
    assert torch.equal(found[0], output(PLACES[1])[0])
    assert torch.allclose(found[1], output(0.25)[1])


def test_memory_is_used_again():
    """No memory is made once the ring is full, whatever goes in: the next place, the same place, another stretch."""
    track = filled(3, 3)
    held = addresses(track)
    assert len(held) == 6 and track.bytes == 3 * 18 * 4
    track.push(0, (PLACES[3],) * 2, output(PLACES[3]))
    assert addresses(track) == held and len(track) == 3
    track.push(0, (PLACES[3],) * 2, output(0.0))
    assert addresses(track) == held and track.places == [(u, u) for u in PLACES[1:4]]
    assert torch.equal(track.entries[-1][0], output(0.0)[0])
    track.push(1, (1.0, 1.0), output(1.0))
    assert len(track) == 1 and addresses(track) < held and track.bytes == 3 * 18 * 4
    for u in PLACES[:2]:
        track.push(1, (u, u), output(u))
    assert addresses(track) == held
    assert all(torch.equal(x, y) for x, y in zip(track.entries[0], output(1.0), strict=True))


def test_entries_are_copies():
    """What a model writes into its output afterwards, and rows of others in one batch, are not held."""
    batch = torch.ones(4, 3, 5)
    track = Track(1)
    track.push(0, (0.5,), (batch[1:2],))
    batch.fill_(7.0)
    assert torch.equal(track.entries[0][0], torch.ones(1, 3, 5))
    assert track.entries[0][0].untyped_storage().nbytes() == 15 * 4
    found = track.forecast((0.25,), (last,))[0]
    found.fill_(9.0)
    assert torch.equal(track.entries[0][0], torch.ones(1, 3, 5))


def test_entries_do_not_hold_a_graph():
    x = torch.ones(3, requires_grad=True)
    track = Track(1)
    for u in PLACES[:3]:
        track.push(0, (u,), (2 * x,))
    assert not track.entries[0][0].requires_grad


@pytest.mark.parametrize("other", [torch.ones(2, 5), torch.ones(3, 5).bfloat16()], ids=["shape", "dtype"])
def test_another_size_begins_anew(other):
    track = filled(2, 2)
    track.push(0, (PLACES[2],), (other,))
    assert len(track) == 1 and track.bytes == other.nbytes
    assert torch.equal(track.forecast((0.0,), (last,))[0], other)


def test_clear_gives_memory_back():
    track = filled(3, 3)
    track.push(1, (1.0, 1.0), output(1.0))
    track.clear()
    assert track.bytes == 0 and not track.ready(1, 1)
    track.push(1, (1.0, 1.0), output(1.0))
    assert track.ready(1, 1) and not track.ready(0, 1)


def test_the_room_counts_what_it_promised():
    """Four bytes free for each promised; short once, short until the end; devices apart."""
    asked, free = [], {"meta": 1000, "cpu": 10**9}

    def look(device: torch.device) -> int:
        asked.append(str(device))
        return free[device.type]

    room, meta = Room(look), torch.device("meta")
    assert room.has(meta, 100) and room.has(meta, 149)
    assert not room.has(meta, 1)
    free["meta"] = 10**9
    assert not room.has(meta, 1), "it changed its mind within a run"
    assert room.has(torch.device("cpu"), 1000) and asked == ["meta"] * 3 + ["cpu"]


@pytest.mark.parametrize(("free", "where"), [(4 * 3 * 72 + 1, "device"), (4 * 3 * 72, "cpu")])
def test_auto_is_decided_by_the_first_entry(free, where):
    """For a ring of three entries of 18 float32 numbers. On the meta device nothing is copied to RAM."""
    track = Track(3, "auto", Room(lambda device: free))
    parts = [part.to("meta") for part in output(0.5)]
    track._settle(parts)
    assert track.where == where and track.away == (where == "cpu")


def test_auto_beside_outputs_in_ram_asks_nobody():
    def never(device):
        raise AssertionError("asked for free memory of the CPU")

    assert filled(2, 2, where="auto", room=Room(never)).where == "device"


@pytest.mark.parametrize("part", [1, 4, 7, 100])
def test_what_comes_from_ram_in_parts_is_the_whole_sum(part, monkeypatch):
    monkeypatch.setattr(history, "PART", part)
    tensors = [output(u)[0].bfloat16() for u in PLACES[:3]]
    found = brought(tensors, (3.0, -3.0, 1.0), torch.device("cpu"))
    assert torch.equal(found, sum(w * x.float() for w, x in zip((3.0, -3.0, 1.0), tensors, strict=True)).bfloat16())


def test_forecasts_of_a_history_in_ram_are_made_on_the_device(monkeypatch):
    """With outputs said to be on the meta device: sizes and devices, no values."""
    monkeypatch.setattr(history, "PART", 4)
    track = filled(2, 2, where="cpu")
    for like in (None, torch.empty(1, device="meta")):
        track._device = torch.device("meta")
        found = track.forecast((0.25, 0.25), (line, line), like)
        assert [x.device.type for x in found] == ["meta", "meta"] and found[0].shape == (3, 5)


def test_memory_that_cannot_be_pinned(monkeypatch):
    empty, limits = torch.empty, []

    def limited(*args, pin_memory=False, **options):
        if pin_memory:
            limits.append(1)
            raise RuntimeError("CUDA error: out of memory\nmore lines")
        return empty(*args, **options)

    monkeypatch.setattr(history.torch, "empty", limited)
    kept, reason = in_ram(torch.Size((3, 5)), torch.bfloat16)
    assert (kept.shape, kept.dtype, kept.is_pinned()) == ((3, 5), torch.bfloat16, False)
    assert reason == "CUDA error: out of memory"
    track = Track(2, "cpu")
    track._settle([torch.empty(3, device="meta")])
    for _ in range(2):
        assert not track._made(torch.empty(3, device="meta")).is_pinned()
    assert len(limits) == 2 and track.pinning == reason, "it is tried once for each track"


def test_what_the_report_says():
    near, far = Track(2), Track(2, "cpu")
    near.push(0, (0.5,), (torch.zeros(300_000),))
    far.push(0, (0.5,), (torch.zeros(100_000),))
    assert told([]) == "0.0 MB" and told([near]) == "1.2 MB" and told([far]) == "0.4 MB"
    far._device = torch.device("meta")
    assert told([near, far]) == "1.2 MB and 0.4 MB in RAM" and told([far]) == "0.4 MB in RAM"
    far.pinning = "out of memory"
    assert told([far]) == "0.4 MB in RAM (not pinned: out of memory)"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose copies are not waited for")
@pytest.mark.parametrize("where", ["device", "cpu"])
def test_on_a_gpu_no_entry_is_overwritten_in_flight(where):
    """Entries replaced right after they were read, with 64 MB copies in the queue; and nothing waits for the device."""
    track, found = Track(2, where), []
    x = torch.ones(1 << 24, device="cuda")
    for step in range(2):   # memory is made, and kernels are compiled, here
        track.push(0, (float(step),), (x * step,))
        track.forecast((step + 1.0,), (last,))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 12):
            track.push(0, (float(step),), (x * step,))
            found.append(track.forecast((step + 1.0,), (line,))[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [float(y.min()) for y in found] == [float(y.max()) for y in found] == [step + 1.0 for step in range(2, 12)]
