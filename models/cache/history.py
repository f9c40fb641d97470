"""What a cache keeps of one branch: the last few outputs with their places, and their weighted sum as a forecast."""
# K entries kept, newest last

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...kernels.weighted_sum import weighted_sum

Where = Literal["device", "cpu"]
Weigh = Callable[[Sequence[float], float], list[float]]
SAME = 1e-7   # abscissae closer than this are one place: the later output replaces the earlier


class Track:
    """A ring of at most `length` entries; an entry is the parts of one output, each with its own abscissa.

    where: "cpu" keeps entries in pinned memory and sends them to the device for each forecast
    """

    def __init__(self, length: int, where: Where = "device") -> None:
        self.length, self.where = length, where
        self.generation = -1
        self.places: list[tuple[float, ...]] = []
        self.entries: list[tuple[Tensor, ...]] = []

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for entry in self.entries for part in entry)

    def push(self, generation: int, place: tuple[float, ...], parts: tuple[Tensor, ...]) -> None:
        """Keep an output. parts: not written to by anyone afterwards"""
        if generation != self.generation or (self.entries and _sizes(self.entries[-1]) != _sizes(parts)):
            self.places, self.entries, self.generation = [], [], generation
        if self.places and abs(self.places[-1][0] - place[0]) <= SAME:
            self.places.pop()
            self.entries.pop()
        self.places = [*self.places, place][-self.length :]
        self.entries = [*self.entries, tuple(self._stored(part) for part in parts)][-self.length :]

    def ready(self, generation: int, least: int) -> bool:
        """True with at least `least` entries of this generation."""
        return self.generation == generation and len(self.entries) >= least

    def forecast(
        self, place: tuple[float, ...], weigh: Sequence[Weigh], like: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The parts at another place: for each, the sum of the entries by its `weigh(abscissae, abscissa)`.

        like: on whose device the result is wanted; None: where the entries are
        """
        found = []
        for part, (u, own) in enumerate(zip(place, weigh, strict=True)):
            weights = own([places[part] for places in self.places], u)
            used = [(w, entry[part]) for w, entry in zip(weights, self.entries, strict=True) if w != 0.0]
            tensors = [x if like is None else x.to(like.device, non_blocking=True) for _, x in used]
            found.append(weighted_sum(tensors, [w for w, _ in used]))
        return tuple(found)

    def _stored(self, part: Tensor) -> Tensor:
        if self.where == "device" or part.device.type == "cpu":
            return part
        kept = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        return kept.copy_(part, non_blocking=True)


def _sizes(parts: tuple[Tensor, ...]) -> list[tuple]:
    return [(part.shape, part.dtype) for part in parts]
