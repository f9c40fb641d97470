"""Who is strong and who is weak in a reflection. What it says; the host makes evaluations of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CfgRoles:
    """The same model and prompts at two guidance strengths. strong: 0 is the run's own"""

    strong: float = 0.0
    weak: float = 1.0


@dataclass(frozen=True)
class LoraRoles:
    """The run's model with a LoRA added at two strengths; the run itself goes on without it.

    weights: the file's tensors, as ComfyUI loads them    name: the file, for messages
    """

    name: str
    weights: dict[str, Any]
    strong: float = 0.5
    weak: float = -0.5


@dataclass(frozen=True)
class PromptRoles:
    """The same model with two positive prompts. strong: None is the run's own"""

    weak: list
    strong: list | None = None


@dataclass(frozen=True)
class ModelRoles:
    """Two MODELs with the run's prompts and guidance. strong: None is the run's own"""

    weak: Any
    strong: Any = None


Roles = CfgRoles | LoraRoles | PromptRoles | ModelRoles
