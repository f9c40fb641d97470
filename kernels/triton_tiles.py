"""Which tile of the Triton kernel runs: the few that fit a device, the fastest of them found by running them once.

What is chosen depends on the head dim, the dtype, the tail and the size class of the blocks, never on a length.
"""
# D head dim   DP D padded to a power of two   M query slots of a program   N key slots of a step

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from .tuned_tiles import KNOWN, Card, TunedTiles, among, entry, word

WARM_RUNS, TIMED_RUNS = 1, 2  # the first compiles
# Where a tile comes from.
SOURCES = ONLY, REMEMBERED, SHIPPED, TIMED = "the only one", "measured earlier", "shipped table", "timed now"


@dataclass(frozen=True)
class Device:
    """What a tile must fit."""

    matrix: str  # "mma" (NVIDIA 8.x and 12.x), "wgmma" (9.x and 10.x, whose operands stay in shared memory) or "amd"
    shared: int  # bytes of shared memory that one program may have


@dataclass(frozen=True)
class Tile:
    """Compile-time choices of `attend_kernel` that do not change what it computes."""

    M: int
    N: int
    warps: int
    stages: int
    split: bool = False  # the accumulator in two halves
    boxes: int = 0  # key blocks of a step where keys and values are laid out in block order first; 0: they are gathered
    registers: int | None = None  # at most, of a thread, so that two programs fit; None: as the compiler likes

    def shared(self, item: int, DP: int, device: Device) -> int:
        """Bytes of shared memory, an upper bound. item: bytes per number"""
        if self.boxes:
            return item * (self.M + 2 * self.stages * self.N) * DP + 1024 * self.stages
        buffers = max(1, self.stages - (device.matrix != "wgmma"))
        query = 0 if device.matrix == "amd" else self.M
        weights = 0 if device.matrix == "wgmma" or self.split else self.M * self.N
        steps = item * ((query + 2 * buffers * self.N) * DP + weights) + 512 * self.stages
        result = 4 * self.M * DP if device.matrix == "amd" else 0  # exchanged between threads to meet a residual
        return max(steps, result)


# (N, warps, stages), the likeliest first. Of all that was compiled for 8.0, 9.0 and gfx942 (16-bit numbers, row tail)
# these spill least: 8 warps for M = 64 compute rows twice, and on AMD they spill 200 to 400 registers. They are not
# ordered by time: the tuner times them on the card.
NARROW = {
    "mma": ((64, 4, 2), (64, 4, 3), (32, 4, 3), (32, 4, 2)),
    "wgmma": ((64, 4, 3), (64, 4, 2), (32, 4, 3)),
    "amd": ((32, 4, 2), (32, 4, 1), (64, 4, 1), (64, 4, 2)),
}
WIDE = {  # DP = 256
    "mma": ((32, 8, 3), (32, 8, 2), (32, 4, 2)),
    "wgmma": ((32, 4, 3), (64, 8, 3), (32, 4, 2)),
    "amd": ((32, 4, 2), (32, 4, 1)),
}
TALL = ((64, 8, 2), (64, 8, 3))  # M = 128
# (blocks of a step, warps, stages, registers) where keys and values are laid out, by M; "wgmma" only. Compiled for 9.0,
# 16-bit numbers, D 128: with 128 registers two programs of M = 128 share a multiprocessor, and with tail "row" 4 of its
# loop's instructions spill; no other tile has any (bench/gpu/results/compiled.json).
# Fewer than 64 keys a step keep the matrix units waiting; more than M take the room of a second program.
LAID_OUT = {128: ((2, 8, 2, None), (1, 8, 3, None), (1, 8, 2, 128)), 64: ((1, 4, 2, None), (2, 4, 2, None))}


def device_of(device: torch.device) -> Device:
    """A CUDA or ROCm device; where torch does not say how much it shares, the least of any that Triton runs on."""
    seen = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Device("amd", getattr(seen, "shared_memory_per_block", 65536))
    matrix = "wgmma" if seen.major in (9, 10) else "mma"
    return Device(matrix, getattr(seen, "shared_memory_per_block_optin", 101376))


def tiles(item: int, DP: int, slots: int, device: Device) -> list[Tile]:
    """What to try, the likeliest first; never empty.

    item: bytes per number
    slots: query slots per block, padded to a power of two
    """
    if item == 4:  # exact sums leave the matrix units idle: one small tile, for being right rather than for speed
        side = 16 if DP > 128 else 32
        return [Tile(min(side, slots), side, 8, 1)]
    tall = slots >= 128 and DP <= 128 and device.matrix != "amd"  # a block of 128 slots then reads its keys once
    M = 128 if tall else min(slots, 64)
    made = []
    for N, warps, stages in TALL if tall else (WIDE if DP > 128 else NARROW)[device.matrix]:
        # "mma" spreads its warps over the keys where the accumulator is wider than high, and then exchanges every
        # softmax through shared memory. Two square halves keep each row in one warp.
        split = device.matrix == "mma" and DP == 2 * M and 16 * warps <= M
        made.append(Tile(M, N, warps, stages, split))
    return [tile for tile in made if tile.shared(item, DP, device) <= device.shared] or [Tile(16, 16, 4, 1)]


def laid_out(item: int, DP: int, slots: int, key_slots: int, device: Device) -> list[Tile]:
    """Tiles for keys and values in block order, the likeliest first; none on devices without a copy engine for boxes.

    key_slots: of a key block, padded to a power of two
    """
    if device.matrix != "wgmma":
        return []
    M = min(slots, 128)
    made = [Tile(M, boxes * key_slots, warps, stages, boxes=boxes, registers=registers)
            for boxes, warps, stages, registers in LAID_OUT.get(M, ()) if 64 <= boxes * key_slots <= M]  # fmt: skip
    return [tile for tile in made if tile.shared(item, DP, device) <= device.shared]


@dataclass(frozen=True)
class Choice:
    """What a tuner settled on. source: one of SOURCES    times: milliseconds of each tile that was timed, else empty"""

    tile: Any
    source: str
    times: dict[Any, float] = field(default_factory=dict)


class Tuner:
    """Knows the fastest tile of each kind of call. It outlives a run: the card stays the same.

    A kind that is met for the first time has the tile of an earlier session on this card, else the one that ships for
    it, else each is timed on the call, and the fastest is remembered. A tile that is not among those offered, or does
    not run, is never chosen.

    name: of the operation, the first word of its kinds; "": tiles are timed and nothing is remembered
    clock: launch -> milliseconds
    """

    def __init__(
        self, name: str = "", clock: Callable[[Callable[[], None]], float] | None = None, known: TunedTiles = KNOWN
    ) -> None:
        self.name, self.clock, self.known = name, clock or milliseconds, known
        self.chosen: dict[Hashable, list[Choice]] = {}  # more than one where calls of a kind are offered other tiles

    def choose(self, key: Hashable, offered: list, launch: Callable[[Any], None]) -> Any:
        """The tile for calls of that key.

        key: with a name, the device and then the words of the kind
        raises: what the last tile raised, when none runs
        """
        for known in self.chosen.get(key, ()):
            if known.tile in offered:
                return known.tile
        found = Choice(offered[0], ONLY) if len(offered) == 1 else self._choice(key, offered, launch)
        self.chosen.setdefault(key, []).append(found)
        return found.tile

    def kind(self, key: tuple) -> str:
        """The words of a key."""
        return " ".join((self.name, *map(word, key[1:])))

    def _choice(self, key: Hashable, offered: list, launch: Callable[[Any], None]) -> Choice:
        if not self.name:
            return self._fastest(offered, launch)
        card, kind = Card.of(key[0]), self.kind(key)
        for source, find in ((REMEMBERED, self.known.remembered), (SHIPPED, self.known.shipped)):
            tile = among(find(card, kind), offered)
            if tile is not None and _runs(tile, launch):
                return Choice(tile, source)
        found = self._fastest(offered, launch)
        self.known.remember(card, kind, entry(found.tile, found.times))
        return found

    def _fastest(self, offered: list, launch: Callable[[Any], None]) -> Choice:
        times: dict[Any, float] = {}
        failure: Exception | None = None
        for tile in offered:
            try:
                times[tile] = self.clock(lambda tile=tile: launch(tile))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # too much shared memory, or a compiler that fails: another tile may do
                failure = error
        if not times:
            raise failure
        return Choice(min(times, key=times.get), TIMED, times)


def _runs(tile: Any, launch: Callable[[Any], None]) -> bool:
    """Launch it once: another version of the compiler may fail where the one that was measured did not."""
    try:
        launch(tile)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # as above
        return False
    return True


def milliseconds(launch: Callable[[], None]) -> float:
    """Time of one launch on the current CUDA or ROCm stream. Waits for the device."""
    for _ in range(WARM_RUNS):
        launch()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in "se")
    start.record()
    for _ in range(TIMED_RUNS):
        launch()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / TIMED_RUNS
