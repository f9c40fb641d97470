"""One evaluation as a cache method takes it: where it is in the run, what is kept for its branches."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .clock import Axis, Tick
from .history import Room, Track, Weigh, told

if TYPE_CHECKING:
    from ..forward import Branch
    from ..host import StepCall
    from .step_cache import Settled

Parts = tuple[Tensor, ...]


@dataclass
class Ledger:
    """What a cache remembers of a run for all branches: counts, the tracks for their size, the room for them."""

    seen: int = 0
    ran: int = 0
    tracks: list[Track] = field(default_factory=list)
    room: Room = field(default_factory=lambda: Room(_free_memory))


@dataclass(frozen=True)
class Job:
    """step: the evaluation    tick: its place    settled: what was decided for this run    axis: the method's"""

    step: StepCall
    tick: Tick
    settled: Settled
    axis: Axis
    keeps: int

    def track(self, branch: Branch, kind: str = "") -> Track:
        """What is kept under `kind` for a branch, device and window."""

        def make() -> Track:
            ledger.tracks.append(track := Track(self.keeps, self.settled.history, ledger.room))
            return track

        ledger = self.ledger
        return self.step.state(branch, make, f"track {kind}")

    @property
    def ledger(self) -> Ledger:
        return self.step.run.state((self.step.owner, "ledger"), None, -1, None, None, Ledger)

    def ready(self, least: int, kind: str = "") -> bool:
        """True when every branch has at least `least` entries under `kind` that continue here, and of one size.

        A text that ComfyUI repeats to batch it with another is longer there than alone (CogVideoX).
        """
        tracks = [self.track(branch, kind) for branch in self.step.forward.branches]
        if not all(track.ready(self.tick.generation, least) for track in tracks):
            return False
        return len({tuple(part.shape[1:] for part in track.entries[-1]) for track in tracks}) == 1

    def place(self, sounds: Sequence[bool]) -> tuple[float, ...]:
        """The abscissa of each part; sounds: which parts are sound, whose clock some models keep apart."""
        return tuple(self.tick.at(self.axis, self.sound_clock()[0] if sound else None) for sound in sounds)

    def sound_clock(self) -> tuple[float, float]:
        """Sigma of the sound, and its derivative by the sigma of the run."""
        clock = self.step.forward.family and self.step.forward.family.audio_clock
        if not clock:
            return self.tick.sigma, 1.0
        return clock(self.step.model, self.step.options, self.tick.sigma)

    def keep(self, parts: Parts, sounds: Sequence[bool] = (), kind: str = "") -> None:
        """Keep copies of an output, branch by branch. parts: rows of all branches"""
        place = self.place(sounds or (False,) * len(parts))
        for branch, own in self.by_branch(parts):
            self.track(branch, kind).push(self.tick.generation, place, own)

    def forecast(self, weigh: Weigh | Sequence[Weigh], sounds: Sequence[bool], like: Tensor, kind: str = "") -> Parts:
        """The parts at this place, rows of all branches. weigh: one for all parts, or one for each

        One for all forecasts sound from its last two entries alone, which makes it a line at most: speech breaks up
        under higher orders before a picture does (reported of Spectrum on MiniMax-H3).
        """
        place = self.place(sounds)
        weighs = tuple(_over_two(weigh) if sound else weigh for sound in sounds) if callable(weigh) else tuple(weigh)
        found = [self.track(b, kind).forecast(place, weighs, like) for b in self.step.forward.branches]
        return found[0] if len(found) == 1 else tuple(torch.cat(rows) for rows in zip(*found, strict=True))

    def by_branch(self, parts: Parts) -> list[tuple[Branch, Parts]]:
        """The rows of each branch; one alone has all, also where a model packs its batch into one sequence."""
        branches = self.step.forward.branches
        if len(branches) == 1:
            return [(branches[0], parts)]
        return [(branch, tuple(part[branch.rows] for part in parts)) for branch in branches]

    def ran(self) -> None:
        """Count an evaluation that ran the model."""
        self._count(1)

    def skipped(self) -> None:
        """Count an evaluation that was forecast."""
        self._count(0)

    def _count(self, ran: int) -> None:
        ledger = self.ledger
        ledger.seen, ledger.ran = ledger.seen + 1, ledger.ran + ran
        self.step.say("model calls", f"{ledger.ran} of {ledger.seen}")
        self.step.say("history", told(ledger.tracks))


def _over_two(weigh: Weigh) -> Weigh:
    """The same forecast, from the last two outputs."""
    return lambda us, u: [0.0] * (len(us) - 2) + list(weigh(us[-2:], u))


def _free_memory(device: torch.device) -> int:
    from ..host import free_memory  # here, so that caches can be imported without ComfyUI

    return free_memory(device)
