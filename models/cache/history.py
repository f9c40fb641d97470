"""What a cache keeps of one branch: the last few outputs with their places, and their weighted sum as a forecast.

Entries are copies in memory of their own, which is used again when an entry is replaced: after the first steps nothing
is allocated but forecasts, and views into an output do not hold all of it.
"""
# K entries kept, newest last

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...kernels.weighted_sum import weighted_sum

Where = Literal["device", "cpu", "auto"]
Weigh = Callable[[Sequence[float], float], list[float]]
Entry = tuple[Tensor, ...]
SAME = 1e-7   # abscissae closer than this are one place: the later output replaces the earlier
AMPLE = 4     # free bytes for each byte of history: an answer of the model lies beside it, and a forecast
# Numbers that come back from RAM at a time. 32 MB of 16 bits take 1.3 ms over PCIe 4.0 at 25 GB/s, a hundred times what
# it costs to launch the copy, and K of them are all that a forecast needs on the device beside its result.
PART = 1 << 24


class Room:
    """Decides, for all tracks of a run, whether the device has room. Where it once had none, it has none until the end.

    free: free bytes of a device
    """

    def __init__(self, free: Callable[[torch.device], int]) -> None:
        self.free = free
        self._promised: Counter[torch.device] = Counter()
        self._short: set[torch.device] = set()
        self._lock = threading.Lock()

    def has(self, device: torch.device, size: int) -> bool:
        """True where `size` more bytes may be kept on the device. Asks the driver, so once for each track."""
        with self._lock:
            if device not in self._short and self.free(device) > AMPLE * (self._promised[device] + size):
                self._promised[device] += size
                return True
            self._short.add(device)
            return False


class Track:
    """A ring of at most `length` entries; an entry is the parts of one output, each with its own abscissa.

    where: "cpu" keeps entries in pinned memory and brings them to the device for each forecast; "auto" asks the room
    pinning: why memory could not be pinned; copies then wait for the device

    Copies to and from pinned memory are queued on the current stream of the device, as its kernels are: an entry is
    read after it was written, and written again after it was read, as long as a run stays on one stream.
    """

    def __init__(self, length: int, where: Where = "device", room: Room | None = None) -> None:
        self.length, self.where, self._room = length, where, room
        self.generation = -1
        self.places: list[tuple[float, ...]] = []
        self.entries: list[Entry] = []
        self.pinning: str | None = None
        self._spare: list[Entry] = []
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """Of all memory that is held, in use or not."""
        return sum(map(_bytes, (*self.entries, *self._spare)))

    @property
    def away(self) -> bool:
        """True where entries lie in RAM and outputs do not."""
        return self.where == "cpu" and self._device is not None and self._device.type != "cpu"

    def push(self, generation: int, place: tuple[float, ...], parts: Sequence[Tensor]) -> None:
        """Keep copies of the parts of an output."""
        if self._device is None:
            self._settle(parts)
        if any(_sizes(kept) != _sizes(parts) for kept in (*self.entries[:1], *self._spare[:1])):
            self.clear()
        if generation != self.generation:
            self._drop(0, len(self.entries))
        elif self.places and abs(self.places[-1][0] - place[0]) <= SAME:
            self._drop(len(self.entries) - 1, len(self.entries))
        if len(self.entries) == self.length:
            self._drop(0, 1)
        entry = self._spare.pop() if self._spare else tuple(self._made(part) for part in parts)
        for kept, part in zip(entry, parts, strict=True):
            kept.copy_(part.detach(), non_blocking=self.away and kept.is_pinned())
        self.generation = generation
        self.places = [*self.places, place]
        self.entries = [*self.entries, entry]

    def clear(self) -> None:
        """Forget all entries and give their memory back."""
        self.places, self.entries, self._spare = [], [], []

    def ready(self, generation: int, least: int) -> bool:
        """True with at least `least` entries of this generation."""
        return self.generation == generation and len(self.entries) >= least

    def forecast(
        self, place: tuple[float, ...], weigh: Sequence[Weigh], like: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The parts at another place: for each, the sum of the entries by its `weigh(abscissae, abscissa)`.

        like: on whose device the result is wanted; None: on that of the outputs
        returns: new tensors
        """
        device, found = self._device if like is None else like.device, []
        for part, (u, own) in enumerate(zip(place, weigh, strict=True)):
            weights = own([places[part] for places in self.places], u)
            used = [(entry[part], w) for w, entry in zip(weights, self.entries, strict=True) if w != 0.0]
            tensors, weights = [x for x, _ in used], [w for _, w in used]
            near = not tensors or tensors[0].device == device
            found.append(weighted_sum(tensors, weights) if near else brought(tensors, weights, device))
        return tuple(found)

    def _settle(self, parts: Sequence[Tensor]) -> None:
        """Where entries lie, from the first one on; a history in RAM beside outputs in RAM is "device"."""
        self._device = parts[0].device
        if self.where == "auto":
            near = self._device.type == "cpu" or self._room is None
            self.where = "device" if near or self._room.has(self._device, self.length * _bytes(parts)) else "cpu"

    def _drop(self, first: int, stop: int) -> None:
        """Take entries out of the ring and keep their memory."""
        self._spare += self.entries[first:stop]
        self.places = self.places[:first] + self.places[stop:]
        self.entries = self.entries[:first] + self.entries[stop:]

    def _made(self, part: Tensor) -> Tensor:
        if not self.away:
            return torch.empty(part.shape, dtype=part.dtype, device=part.device)
        kept, reason = in_ram(part.shape, part.dtype, pin=self.pinning is None)
        self.pinning = self.pinning or reason
        return kept


def brought(tensors: Sequence[Tensor], weights: Sequence[float], device: torch.device) -> Tensor:
    """The weighted sum of contiguous tensors in RAM, computed on the device part by part."""
    out = torch.empty(tensors[0].shape, dtype=tensors[0].dtype, device=device)
    parts = zip(out.view(-1).split(PART), *(x.view(-1).split(PART) for x in tensors), strict=True)
    for into, *some in parts:
        into.copy_(weighted_sum([x.to(device, non_blocking=x.is_pinned()) for x in some], weights))
    return out


def in_ram(shape: torch.Size, dtype: torch.dtype, pin: bool = True) -> tuple[Tensor, str | None]:
    """Memory of the host, pinned if it can be and shall be, else with the reason.

    torch holds pinned memory in powers of two, and what is given back it keeps for the next run.
    """
    if pin:
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True), None
        except RuntimeError as error:   # a limit of the system, or no driver that pins
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return torch.empty(shape, dtype=dtype), reason
    return torch.empty(shape, dtype=dtype), None


def told(tracks: Iterable[Track]) -> str:
    """Size and place of a history, for a report."""
    tracks = list(tracks)
    far = sum(track.bytes for track in tracks if track.away)
    near = sum(track.bytes for track in tracks) - far
    reason = next((track.pinning for track in tracks if track.pinning), None)
    ram = f"{far / 1e6:.1f} MB in RAM" + (f" (not pinned: {reason})" if reason else "")
    return ram if far and not near else f"{near / 1e6:.1f} MB" + (f" and {ram}" if far else "")


def _bytes(parts: Sequence[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def _sizes(parts: Sequence[Tensor]) -> list[tuple]:
    return [(part.shape, part.dtype) for part in parts]
