"""The rows of one shape: which are there, which may begin, and how a timed run becomes one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

from .models import Shape
from .stage import Bench
from .step_clock import Ran

PLAIN = "dense, ComfyUI"  # setting of the step as ComfyUI runs it


@dataclass
class Rows:
    """raises: nothing; a part that fails leaves a row that says why"""

    bench: Bench
    shape: Shape

    def has(self, what: str, setting: str) -> bool:
        return self.bench.has(what=what, shape=self.shape.name, setting=setting)

    def seconds(self, setting: str, field: str = "seconds") -> float | None:
        """Of a step's row, None without one."""
        return next((row.get(field) for row in self.bench.rows if row.get("what") == "step"
                     and row["shape"] == self.shape.name and row["setting"] == setting and "failed" not in row), None)

    def due(self, what: str, setting: str, steps: float) -> bool:
        """True for a row that is missing and for which there is time. steps: dense ones that it takes"""
        dense = self.seconds("dense") or self.seconds(PLAIN) or 0.0
        return not self.has(what, setting) and self.bench.left() > steps * dense * 1.1

    def attempt(self, what: str, setting: str) -> AbstractContextManager[None]:
        return self.bench.attempt(what=what, shape=self.shape.name, setting=setting)

    def put(self, what: str, setting: str, **row) -> None:
        """Once: what an earlier call of the bench has left stays."""
        if not self.has(what, setting):
            self.bench.put(what=what, shape=self.shape.name, setting=setting, **row)

    def put_step(self, setting: str, model, ran: list[Ran], **more) -> None:
        """ran: runs of the same. The peak counts the weights of this model alone."""
        times = [x for one in ran for x in one.seconds]
        above = max(one.above for one in ran)
        value = more.pop("seconds", median(times))
        row = {"seconds": value, "times": times, "peak_gb": (above + model.model_size()) / 1e9,
               "above_weights_gb": above / 1e9, "finite": all(one.finite for one in ran), **more}  # fmt: skip
        for name, against in (("speedup", "dense"), ("speedup_on_comfyui", PLAIN)):
            if dense := self.seconds(against):
                row[name] = dense / value
        self.put("step", setting, **row, report=ran[-1].report)

    def put_model(self, setting: str, model, depth: int, seconds: float) -> None:
        """What was built. depth: its blocks    seconds: until it lay on the device"""
        self.put("model", setting, seconds=seconds, blocks=depth, blocks_of_the_real_one=self.shape.network.depth,
                 tokens=self.shape.tokens, weights_gb=model.model_size() / 1e9,
                 computes_in=str(model.model.get_dtype_inference()))  # fmt: skip
