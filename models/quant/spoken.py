"""What quantised layers say in the report of a run: how many there are of each format, and how they computed."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from ..host import StepCall
from .format import FORMATS
from .linear import told


@dataclass(frozen=True)
class SpokenLayers:
    """A step method that changes nothing and listens.

    others: layers in formats of ComfyUI's own, by format
    """

    others: tuple[tuple[str, int], ...] = ()

    def why_not(self, step: StepCall) -> str | None:
        return None

    def evaluate(self, step: StepCall) -> Tensor:
        calls: Counter = Counter()
        token = told.set(lambda name, bits, path: calls.update([(name, bits, path)]))
        try:
            return step.proceed()
        finally:
            told.reset(token)
            for (name, bits, path), count in sorted(calls.items()):
                step.say(f"{FORMATS[name].label} {bits}-bit", f"{count} layers, {path}")
            for name, count in self.others:
                step.say(name, f"{count} layers, by ComfyUI")
