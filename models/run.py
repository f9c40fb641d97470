"""State of one sampling run: born when sampling starts, dropped when it ends, however it ends.

Hooks reach it through the options that travel with the run, never through a global, so one patched model may sample in
two guiders at once. State is keyed by who keeps it, the branch, the layer, the layout and the context window.
"""
from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

from .report import Report
from .schedule import Position, Schedule, Tracker

State = TypeVar("State")


class Run:
    """One sampling run. `schedule`, `report` and `position` are for reading; `state` is where methods keep things."""

    def __init__(self, schedule: Schedule, report: Report) -> None:
        self.schedule = schedule
        self.report = report
        self.position: Position | None = None
        self.calls = 0
        self._tracker = Tracker(schedule)
        self._states: dict[Hashable, object] = {}
        self._visits: Counter = Counter()
        # ComfyUI may spread the branches of one step over GPUs and threads; what makes a state may ask for another one.
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict) -> Run:
        return self   # options are copied deeply in places; the state of a run is one

    @property
    def step(self) -> int | None:
        """Step of the current sampler call, None before the first."""
        return None if self.position is None else self.position.step

    def begin_call(self, sigma: float) -> None:
        """Note that the sampler evaluates the model, at `sigma`. Once per evaluation, whatever the batching."""
        self.position = self._tracker.locate(sigma)
        self.calls += 1
        with self._lock:
            self._visits.clear()

    def begin_aside(self, step: int) -> None:
        """Note an evaluation beside the sampler's own, that serves `step`: it takes the place of the step's first call.

        What the sampler calls next is placed as if it had not been.
        """
        self.position = self.schedule.start_of(step)
        self.calls += 1
        with self._lock:
            self._visits.clear()

    def visit(self, branch: Hashable, window: Hashable) -> int:
        """How often this branch was evaluated in the current sampler call: 0, then 1 for guidance that repeats it."""
        if self.position is None:   # a guider that shows no sampler calls: nothing says when the next one begins
            return 0
        with self._lock:
            self._visits[branch, window] += 1
            return self._visits[branch, window] - 1

    def state(self, kind: Hashable, branch: Hashable, layer: int, layout: Hashable, window: Hashable,
              factory: Callable[[], State]) -> State:
        """The object kept under this key, made by `factory` at first sight.

        kind: who keeps it; two patches of the same kind must pass different values
        layout: `TokenLayout.key`
        """
        key = (kind, branch, layer, layout, window)
        with self._lock:
            if key not in self._states:
                self._states[key] = factory()
            return self._states[key]

    def __len__(self) -> int:
        return len(self._states)

    def close(self) -> None:
        """Drop all state. Tensors held by it are free afterwards."""
        with self._lock:
            self._states.clear()
            self._visits.clear()
