"""What each patch did in a run: calls taken, reasons for standing aside, one line at the end.

A reason is logged once per run and counted. The line goes to the log and onto the node; nothing here holds a tensor.
"""
from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field

log = logging.getLogger("interspatial")

Shares = dict[int, tuple[float, int]]   # layer or step -> sum, count

SHOWN_REASONS = 3   # reasons named in the summary line, the most frequent first


@dataclass(frozen=True)
class Card:
    """What a patch says about itself, for the other patches and for the user.

    name: shown to the user, "sparse"
    kind: decides the order of hooks, one of `host.KINDS`
    exact: True when the result is the unpatched one up to rounding
    skips: which model calls it may leave out, "" when none
    """

    name: str
    kind: str
    exact: bool = False
    skips: str = ""


@dataclass
class Tally:
    """Counts of one patch in one run: calls run and left aside, why, in which layers and steps, and noted shares."""

    card: Card
    run: int = 0
    aside: int = 0
    reasons: Counter = field(default_factory=Counter)
    numbers: dict[str, tuple[float, int]] = field(default_factory=dict)
    layers_seen: set = field(default_factory=set)
    layers_run: set = field(default_factory=set)
    steps_seen: set = field(default_factory=set)
    steps_run: set = field(default_factory=set)
    details: dict[str, tuple[Shares, Shares]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def offered(self) -> int:
        """Calls that this patch has seen."""
        return self.run + self.aside

    def mean(self, name: str) -> float | None:
        """Mean of the numbers noted under `name`, None when there are none."""
        total, count = self.numbers.get(name, (0.0, 0))
        return total / count if count else None

    def lines(self) -> list[str]:
        """The line, and for each detail how it went over the layers and over the steps."""
        found = [self.line()]
        for name, places in self.details.items():
            for place, shares in zip(("layer", "step"), places, strict=True):
                means = (f"{at}: {100 * total / count:.0f}" for at, (total, count) in sorted(shares.items()))
                found.append(f"  {name} in % by {place}: {', '.join(means)}")
        return found

    def line(self) -> str:
        """One line: `sparse 46/50 layers, 18/20 steps, kept 11 %, unpatched: first step (50), ...`"""
        if not self.run and not self.aside:
            return (
                f"{self.card.name} saw no call: a node after it replaced ComfyUI's own hook, or the model cuts its "
                "attention into parts (LTX guides with a strength below 1)"
            )
        parts = [f"{len(self.layers_run)}/{len(self.layers_seen)} layers"] if self.layers_seen else []
        parts.append(f"{len(self.steps_run)}/{len(self.steps_seen)} steps")
        parts += [f"{name} {100 * self.mean(name):.0f} %" for name in self.numbers]
        parts += [f"{name} {text}" for name, text in self.texts.items()]
        return f"{self.card.name} {', '.join(parts)}{self._because()}"

    def _because(self) -> str:
        named = [f"{reason} ({count})" for reason, count in self.reasons.most_common(SHOWN_REASONS)]
        more = len(self.reasons) - len(named)
        return f", unpatched: {', '.join(named)}{f', {more} more' if more > 0 else ''}" if named else ""


class Report:
    """The tallies of all patches in one run."""

    def __init__(self) -> None:
        self.tallies: dict[object, Tally] = {}
        self.ended: str | None = None
        self._lock = threading.Lock()

    def tally(self, patch: object, card: Card) -> Tally:
        """The tally of `patch`, made at first sight."""
        with self._lock:
            return self.tallies.setdefault(patch, Tally(card))

    def ran(self, tally: Tally, layer: int | None, step: int | None) -> None:
        """Count a call that the patch took over."""
        with self._lock:
            tally.run += 1
            tally.steps_seen.add(step)
            tally.steps_run.add(step)
            if layer is not None:
                tally.layers_seen.add(layer)
                tally.layers_run.add(layer)

    def aside(self, tally: Tally, reason: str, layer: int | None, step: int | None) -> None:
        """Count a call that the patch left alone, and log the reason the first time."""
        with self._lock:
            tally.aside += 1
            tally.reasons[reason] += 1
            tally.steps_seen.add(step)
            if layer is not None:
                tally.layers_seen.add(layer)
            first = tally.reasons[reason] == 1
        if first:
            log.info("%s stands aside: %s", tally.card.name, reason)

    def note(self, tally: Tally, **shares: float) -> None:
        """Average a share (0 to 1) over the run, such as the kept share of attention."""
        with self._lock:
            for name, value in shares.items():
                total, count = tally.numbers.get(name, (0.0, 0))
                tally.numbers[name] = (total + value, count + 1)

    def say(self, tally: Tally, name: str, text: str) -> None:
        """A fact about the run that is no share, such as where memory went. The last one said under a name counts."""
        with self._lock:
            tally.texts[name] = text

    def detail(self, tally: Tally, name: str, share: float, layer: int, step: int) -> None:
        """Average a share over each layer and over each step."""
        with self._lock:
            for shares, at in zip(tally.details.setdefault(name, ({}, {})), (layer, step), strict=True):
                total, count = shares.get(at, (0.0, 0))
                shares[at] = (total + share, count + 1)

    def text(self) -> str:
        """One line per patch with its details below, and how the run ended when it did not end well."""
        lines = [line for tally in self.tallies.values() for line in tally.lines()]
        return "\n".join(lines + ([f"the run ended early: {self.ended}"] if self.ended else []))
