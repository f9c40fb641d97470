"""Where in a run a model call lies: step, percent, and which call within the step.

The sampler tells no hook its step. What a hook sees is sigma, and samplers evaluate the model at sigmas of their own:
second-order ones between two steps or already at the next one, restarts jump up again, split runs see a part of the
schedule. The `Tracker` follows the calls in order, so an equal sigma in two steps is not confused.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Samplers whose later calls of one step can land exactly on (or below) the sigma of the next step, so that sigma alone
# would place them there. Number of calls per step, read in comfy/k_diffusion/sampling.py of ComfyUI 0.30.0.
CALLS_PER_STEP = {
    "sample_heun": 2, "sample_heunpp2": 3, "sample_exp_heun_2_x0": 2, "sample_exp_heun_2_x0_sde": 2,
    "sample_dpm_2_ancestral": 2, "sample_dpmpp_2s_ancestral": 2, "sample_dpmpp_2s_ancestral_cfg_pp": 2,
}
TOLERANCE = 1e-5   # relative; sigmas go through exp(log(x)) in float32 in some samplers
BISECTIONS = 40    # halvings when a sigma is turned into a percent: far below float32


@dataclass(frozen=True)
class Position:
    """One sampler call. `step` counts from 0 within this run; `call` from 0 within the step."""

    step: int
    steps: int
    call: int
    sigma: float
    percent: float


@dataclass(frozen=True)
class StepWindow:
    """A part of the run in which a patch is active.

    unit "steps": start and end count steps of this run, end not included; negative values count from the end,
        end None is the end of the run
    unit "percent": 0 to 1 of the model's noise range, both ends included, as ComfyUI's own start and end percent. Right
        in split runs and with denoise below 1, because it goes by sigma
    """

    start: float = 0.0
    end: float | None = None
    unit: str = "percent"

    def __post_init__(self) -> None:
        if self.unit not in ("percent", "steps"):
            raise ValueError(f"A step window is counted in percent or steps, not in {self.unit!r}.")
        if self.unit == "percent" and not 0.0 <= self.start <= (1.0 if self.end is None else self.end) <= 1.0:
            raise ValueError(
                f"A window in percent lies in 0 to 1 with its start before its end; it was {self.start} to {self.end}."
            )
        if self.unit == "steps" and any(v is not None and v != int(v) for v in (self.start, self.end)):
            raise ValueError(f"A window in steps has whole numbers; it was {self.start} to {self.end}.")


WHOLE = StepWindow(0.0, 1.0)


class Schedule:
    """The sigmas of one run and the noise range of its model.

    sigmas: the run's schedule, steps + 1 values
    percent_to_sigma: of the run's own model_sampling, asked when the run starts so that later patches count
    sampler: name of the sampler function, "" when unknown
    flow: sigma is the share of noise, 0 to 1, as in rectified flow; else its standard deviation
    """

    def __init__(self, sigmas: Sequence[float], percent_to_sigma: Callable[[float], float], sampler: str = "",
                 flow: bool = True) -> None:
        self.sigmas = tuple(float(s) for s in sigmas)
        self.steps = max(len(self.sigmas) - 1, 0)
        self.sampler = sampler
        self.flow = flow
        self._percent_to_sigma = percent_to_sigma
        self._sigma_at: dict[float, float] = {}

    def sigma_at(self, percent: float) -> float:
        """Sigma at a percent of the noise range: 0 is pure noise, 1 the finished picture."""
        if percent not in self._sigma_at:
            self._sigma_at[percent] = float(self._percent_to_sigma(percent))
        return self._sigma_at[percent]

    def percent_of(self, sigma: float) -> float:
        """Inverse of `sigma_at`, by bisection; 0 above and 1 below the model's range."""
        low, high = 0.0, 1.0
        if sigma >= self._percent_to_sigma(low):
            return low
        if sigma <= self._percent_to_sigma(high):
            return high
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if self._percent_to_sigma(middle) > sigma:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def calls_in(self, step: int) -> int:
        """Model calls that a sampler of `CALLS_PER_STEP` makes in a step, else 1."""
        calls = CALLS_PER_STEP.get(self.sampler, 1)
        # heunpp2 falls back to Heun, then Euler, at the end of any schedule
        return min(calls, self.steps - step) if self.sampler == "sample_heunpp2" else calls

    def start_of(self, step: int) -> Position:
        """The place of a step's first call."""
        sigma = self.sigmas[step]
        return Position(step, self.steps, 0, sigma, self.percent_of(sigma))

    def contains(self, window: StepWindow, position: Position) -> bool:
        """True when a call at `position` lies inside `window`."""
        if window.unit == "percent":
            end = 1.0 if window.end is None else window.end
            return _between(position.sigma, self.sigma_at(end), self.sigma_at(window.start))
        start, end = (self._step(window.start), self.steps if window.end is None else self._step(window.end))
        return start <= position.step < end

    def count(self, window: StepWindow) -> int:
        """Steps of this run inside `window`, judged at each step's first call."""
        places = (Position(i, self.steps, 0, s, 0.0) for i, s in enumerate(self.sigmas[:self.steps]))
        return sum(self.contains(window, place) for place in places)

    def _step(self, value: float) -> int:
        return int(value) if value >= 0 else self.steps + int(value)


class Tracker:
    """Follows the calls of one run. `locate` is called once per sampler call, in order."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._step = self._call = -1

    def locate(self, sigma: float) -> Position:
        """Place the next model call, evaluated at `sigma`."""
        step = self._find(sigma)
        self._call = self._call + 1 if step == self._step else 0
        self._step = step
        return Position(step, self.schedule.steps, self._call, sigma, self.schedule.percent_of(sigma))

    def _find(self, sigma: float) -> int:
        sigmas, last, step = self.schedule.sigmas, self.schedule.steps - 1, self._step
        if last < 0:
            return 0
        if step < 0:
            return self._search(sigma, 0)
        if self._call + 1 < self.schedule.calls_in(step):
            return step
        if _same(sigma, sigmas[step + 1]):
            return min(step + 1, last)
        if _between(sigma, sigmas[step], sigmas[step + 1]):
            return step
        return self._search(sigma, min(step + 1, last))

    def _search(self, sigma: float, start: int) -> int:
        """First step from `start` on whose range holds sigma, else the first of all, else the nearest by sigma."""
        sigmas, last = self.schedule.sigmas, self.schedule.steps - 1
        for step in (*range(start, last + 1), *range(start)):
            if _same(sigma, sigmas[step]) or (_between(sigma, sigmas[step], sigmas[step + 1])
                                              and not _same(sigma, sigmas[step + 1])):
                return step
        return min(range(last + 1), key=lambda step: abs(sigmas[step] - sigma))


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _between(sigma: float, a: float, b: float) -> bool:
    return min(a, b) <= sigma <= max(a, b) or _same(sigma, a) or _same(sigma, b)
