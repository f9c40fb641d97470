"""The list of sparse attention methods. A method is one file: its settings as a frozen dataclass, registered by name.

The node builds its widgets from this list; no other file changes when a method is added. No method lives here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from .job import Job


class Method:
    """One published way to choose what attention computes exactly.

    A method that only chooses blocks writes `plan`. One that needs more (a dense pass to search in, a correction of
    what the kernel returns) writes `attend` and calls `job.run` itself.

    label, summary: shown to the user
    own_rule: what decides the density when it is set to 0, such as "top_p"; "": the preset of the model family
    steerable: the density may change from call to call, so an error target can set it
    remembers: later calls depend on earlier ones, so a probe must show it every step
    """

    label: ClassVar[str]
    summary: ClassVar[str]
    own_rule: ClassVar[str] = ""
    steerable: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    density: float = 0.0

    @staticmethod
    def inputs(io) -> list:
        """The method's own widgets; `io` is ComfyUI's node schema module."""
        raise NotImplementedError

    def why_not(self, call: AttentionCall) -> str | None:
        """A reason of the method's own to leave a call dense."""
        return None

    def plan(self, job: Job) -> BlockPlan:
        raise NotImplementedError

    def attend(self, job: Job) -> Tensor:
        """returns: [B, N, H, D]"""
        return job.run(self.plan(job))


METHODS: dict[str, type[Method]] = {}


def method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Register a method under the name that workflows store."""

    def add(cls: type[Method]) -> type[Method]:
        METHODS[name] = cls
        return cls

    return add
