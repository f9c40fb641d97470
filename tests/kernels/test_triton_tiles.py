"""Which tiles are offered, and which of them is chosen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels.triton_tiles import Device, Tile, Tuner, device_of, laid_out, tiles

DEVICES = [Device("mma", 101376), Device("mma", 166912), Device("wgmma", 232448), Device("amd", 65536)]
FAST, SLOW, BROKEN = Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 64, 8, 3)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_there_is_always_a_tile_and_all_fit(device):
    for item in (2, 4):
        for DP in (16, 32, 64, 128, 256):
            for slots in (16, 32, 64, 128, 256):
                offered = tiles(item, DP, slots, device)
                assert offered and len({*offered}) == len(offered)
                for tile in offered:
                    assert tile.shared(item, DP, device) <= device.shared
                    assert 16 <= tile.M <= max(16, slots)
    assert tiles(2, 256, 64, Device(device.matrix, 20_000)) == [Tile(16, 16, 4, 1)]  # a card that nobody knows


def test_blocks_of_64_slots_read_their_keys_once():
    for device in DEVICES:
        for DP in (64, 128, 256):
            assert {tile.M for tile in tiles(2, DP, 64, device)} == {64}


@pytest.mark.parametrize(
    ("hip", "seen", "want"),
    [
        (None, {"major": 8, "shared_memory_per_block_optin": 166912}, Device("mma", 166912)),
        (None, {"major": 9, "shared_memory_per_block_optin": 232448}, Device("wgmma", 232448)),
        (None, {"major": 12}, Device("mma", 101376)),
        ("7.1", {"major": 9, "shared_memory_per_block": 65536}, Device("amd", 65536)),
    ],
)
def test_what_a_device_is(hip, seen, want, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**seen))
    assert device_of(torch.device("cuda")) == want


def test_the_fastest_is_found_once():
    times, launched = {SLOW: 2.0, FAST: 1.0}, []

    def clock(launch):
        launch()
        return times[launched[-1]]

    tuner = Tuner(clock=clock)
    for _ in range(2):
        assert tuner.choose("a", [SLOW, FAST], launched.append) == FAST
    assert launched == [SLOW, FAST]
    times[SLOW] = 0.5
    assert tuner.choose("b", [SLOW, FAST], launched.append) == SLOW
    assert tuner.choose("c", [FAST], lambda tile: pytest.fail("nothing to compare")) == FAST


def test_tiles_that_fail_are_passed_over():
    def launch(tile):
        if tile == BROKEN:
            raise RuntimeError("out of resource: shared memory")
        if tile == SLOW:
            raise torch.OutOfMemoryError("full")

    tuner = Tuner(clock=lambda run: run() or 1.0)
    assert tuner.choose("a", [BROKEN, FAST], launch) == FAST
    with pytest.raises(RuntimeError, match="out of resource"):
        tuner.choose("b", [BROKEN, BROKEN], launch)
    with pytest.raises(torch.OutOfMemoryError):  # the host's to handle, and no verdict on a tile
        tuner.choose("c", [SLOW, FAST], launch)
    assert tuner.choose("b", [FAST], launch) == FAST


@pytest.mark.parametrize("key_slots", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("slots", [16, 64, 128, 256])
def test_laid_out_tiles_have_steps_of_64_keys_to_as_many_as_queries(slots, key_slots):
    hopper = Device("wgmma", 232448)
    for tile in laid_out(2, 128, slots, key_slots, hopper):
        assert 64 <= tile.N == tile.boxes * key_slots <= tile.M <= slots
        assert tile.shared(2, 128, hopper) <= hopper.shared
    assert bool(laid_out(2, 128, slots, key_slots, hopper)) == (slots >= 64 and 32 <= key_slots <= min(slots, 128))
    assert not laid_out(2, 128, slots, key_slots, Device("mma", 232448))
