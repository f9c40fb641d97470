"""Weak-to-strong reflection (Bai, Sugiyama and Xie, "Weak-to-Strong Diffusion with Reflection", arXiv 2502.00473).

Before a step goes from sigma s to t, the latent x takes that step with a strong part and comes back with a weak one.
It ends where it began but for (t - s) times the difference of the two velocities: a move from weak to strong. One Euler
step each way; with x0 = x - s d the same lines serve flow models (d is their velocity) and noise predictors.

B batch, the rest of a latent's shape is whatever the model has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..schedule import Schedule, StepWindow
from .samplers import calls_per_step, why_refused

Denoise = Callable[[Tensor, float], Tensor]  # latent [B, ...] and its sigma -> denoised latent [B, ...]
FIRST_HALF = StepWindow(0.0, 0.5)
LABELS = ("old", "new")  # sigma that the weak part is told on the way back: of where it goes, or of where it is


def reflect(
    x: Tensor, sigma: float, following: float, strong: Denoise, weak: Denoise, strength: float = 1.0,
    label: Literal["old", "new"] = "old",
) -> Tensor:  # fmt: skip
    """x + strength * (there and back - x), [B, ...].

    x: [B, ...] at `sigma`    following: sigma of the next step, above 0
    label: one of LABELS; both give the same displacement up to the square of the step
    """
    there = _euler(x, strong(x, sigma), sigma, following - sigma)
    told = sigma if label == "old" else following
    back = _euler(there, weak(there, told), told, sigma - following)
    return x + strength * (back - x)


def _euler(x: Tensor, denoised: Tensor, sigma: float, span: float) -> Tensor:
    return x + (x - denoised) / sigma * span


@dataclass(frozen=True)
class Reflection:
    """When a run reflects, and how far.

    strength: share of the displacement that is taken    every: of the steps in the window, each `every`-th
    label: as in `reflect`
    raises: ValueError for a number or a word that means nothing
    """

    window: StepWindow = FIRST_HALF
    strength: float = 1.0
    every: int = 1
    label: Literal["old", "new"] = "old"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Reflect in every n-th step: n was {self.every}, accepted is 1 or more.")
        if self.label not in LABELS:
            raise ValueError(f"The label of the way back was {self.label!r}. Accepted: {', '.join(LABELS)}.")

    def steps(self, schedule: Schedule) -> tuple[int, ...]:
        """The steps that begin with a reflection, none for a window without width.

        A step that ends at sigma 0 has no reflection: there is no way back.
        """
        if self.window.start == self.window.end:
            return ()
        inside = [i for i in range(schedule.steps) if schedule.contains(self.window, schedule.start_of(i))]
        return tuple(i for i in inside[:: self.every] if schedule.sigmas[i] > schedule.sigmas[i + 1] > 0.0)

    def why_not(self, schedule: Schedule) -> str | None:
        """Why a run with this schedule is left as it is, None when it reflects."""
        if reason := why_refused(schedule.sampler):
            return reason
        if self.strength == 0.0:
            return "strength is 0"
        return None if self.steps(schedule) else "no step that could be reflected lies in the window"


def cost(schedule: Schedule, reflected: int, own: int, strong: int, weak: int) -> str:
    """What a reflected run evaluates, and the plain run that costs as much, as one sentence.

    own, strong, weak: evaluations of the model for one answer of the run itself and of the two parts, 2 with guidance
    """
    calls = sum(calls_per_step(schedule, i) for i in range(schedule.steps))
    plain, more = calls * own, reflected * (strong + weak)
    equal = round(schedule.steps * (plain + more) / max(plain, 1))
    return (
        f"{reflected} of {schedule.steps} steps reflected: {plain + more} model evaluations in place of {plain} "
        f"({(plain + more) / max(plain, 1):.2f} x), as many as {equal} plain steps"
    )
