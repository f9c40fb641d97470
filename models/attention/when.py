"""Where in a run and in the network attention stays dense, and how the density gets to its value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..call import AttentionCall
from ..schedule import WHOLE, Position, StepWindow
from .presets import Preset


@dataclass(frozen=True)
class When:
    """Where a sparse method may run. A call must lie in both windows.

    percent: part of the model's noise range    first, last: steps at the start and end of the run that stay dense
    dense_layers: layer numbers, negative ones from the end    min_tokens: of the attention call
    first and dense_layers may be None: the preset of the model family
    """

    percent: StepWindow = WHOLE
    first: int | None = 0
    last: int = 0
    dense_layers: tuple[int, ...] | None = ()
    min_tokens: int = 0

    def resolved(self, preset: Preset, steps: int) -> When:
        """Every choice made: what was left to the preset is filled in for a run of `steps` steps."""
        first = math.floor(preset.start * steps) if self.first is None else self.first
        layers = preset.dense_layers if self.dense_layers is None else self.dense_layers
        return replace(self, first=first, dense_layers=layers)

    def why_not(self, call: AttentionCall) -> str | None:
        """Of a resolved When."""
        if call.layout.tokens < self.min_tokens:
            return f"fewer than {self.min_tokens} tokens"
        position = call.forward.position
        if position is None:
            return "the sampler does not tell the step"
        if not self.first <= position.step < position.steps - self.last:
            return "a dense step by count"
        if not call.run.schedule.contains(self.percent, position):
            return "outside the percent window"
        if call.layer in self.dense_layers or call.layer - call.forward.layers in self.dense_layers:
            return "a dense layer"
        return None


@dataclass(frozen=True)
class Ramp:
    """The density falls linearly from 1 to its value over the first sparse steps; the slower of the two counts.

    steps: sparse steps until the value is reached    percent: of the model's noise range, the same; 0: at once
    """

    steps: int = 0
    percent: float = 0.0

    def density(self, value: float, when: When, position: Position) -> float:
        """The density of a call at `position`, `value` from the end of the ramp on."""
        done = 1.0
        if self.steps:
            done = min(done, (position.step - when.first + 1) / (self.steps + 1))
        if self.percent:
            done = min(done, max(0.0, position.percent - when.percent.start) / self.percent)
        return 1.0 + (value - 1.0) * done


ALWAYS = When()
AT_ONCE = Ramp()


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Layer numbers from "0, 1, -1" or "0-2, -1"; None for "auto".

    raises: ValueError that says what is accepted
    """
    if text.strip().lower() == "auto":
        return None
    found: list[int] = []
    for item in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        first, dash, last = item.partition("-") if not item.startswith("-") else (item, "", "")
        try:
            found += range(int(first), int(last) + 1) if dash else [int(item)]
        except ValueError:
            raise ValueError(
                f"Dense layers: {item!r} is not understood. Accepted: auto, or layer numbers and ranges separated by "
                "commas, negative ones from the end, for example 0-1, -1."
            ) from None
    return tuple(found)
