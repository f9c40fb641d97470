"""Which tile of the Triton kernel runs: the few that fit a device, the fastest of them found by running them once.

What is chosen depends on the head dim, the dtype, the tail and the size class of the blocks, never on a length.
"""
# D head dim   DP D padded to a power of two   M query slots of a program   N key slots of a step

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

WARM_RUNS, TIMED_RUNS = 1, 2  # the first compiles


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

    def shared(self, item: int, DP: int, device: Device) -> int:
        """Bytes of shared memory, an upper bound. item: bytes per number"""
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


class Tuner:
    """Remembers the fastest tile of each kind of call. It outlives a run: the card stays the same."""

    def __init__(self, clock: Callable[[Callable[[], None]], float] | None = None) -> None:
        self.clock = clock or milliseconds
        self.chosen: dict[Hashable, Tile] = {}

    def choose(self, key: Hashable, offered: list[Tile], launch: Callable[[Tile], None]) -> Tile:
        """The tile for calls of that key, found by launching each of those offered.

        raises: what the last tile raised, when none runs
        """
        if key not in self.chosen:
            self.chosen[key] = offered[0] if len(offered) == 1 else self._fastest(offered, launch)
        return self.chosen[key]

    def _fastest(self, offered: list[Tile], launch: Callable[[Tile], None]) -> Tile:
        times: dict[Tile, float] = {}
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
        return min(times, key=times.get)


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
