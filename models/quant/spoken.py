"""What quantised layers say in the report of a run: how many there are of each format, and how they computed."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from ..host import StepCall
from .format import FORMATS
from .linear import told

LORAS = ("beside", "hooked")  # where a layer of `host.quant_ops` has those that are added to its output


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
            self._tell(step, calls)

    def _tell(self, step: StepCall, calls: Counter) -> None:
        ways: dict[str, list[str]] = {}
        for (name, bits, path), count in sorted(calls.items()):
            ways.setdefault(f"{FORMATS[name].label} {bits}-bit", []).append(f"{count} layers, {path}")
        for kept, how in ways.items():
            step.say(kept, "; ".join(how))
        for kept, count in self.others:
            step.say(kept, f"{count} layers, by ComfyUI")
        if beside := sum(any(getattr(layer, name, ()) for name in LORAS) for layer in step.model.modules()):
            step.say("LoRA", f"beside {beside} layers")
