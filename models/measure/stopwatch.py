"""Seconds, model calls and peak memory of the sampling runs of one MODEL.

`attach_stopwatch` puts three wrappers outermost on a clone of the MODEL; each finished run appends one frozen
`RunRecord` to a `Measurement`. An interrupted or failed run made no clip and leaves no record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from .lineage import fingerprint, upstream
from .memory import PeakMemory, synchronize

KEY = "interspatial.stopwatch"


@dataclass(frozen=True)
class RunRecord:
    """One finished sampling run. Times are wall-clock seconds with the device idle at both ends."""

    seconds: float  # the sampler's loop: from the first step's start to the last step's end
    setup_seconds: float  # the rest: loading the weights, encoding the conditions, the patches' own preparation
    steps: int  # intervals of the sigma schedule
    model_calls: int  # times the sampler asked for the model, per batch of conditions; a cache may have answered some
    peak_bytes: int
    memory: str  # what peak_bytes counts, in words
    origin: str | None  # fingerprint of the sampler node, None outside a graph

    @property
    def seconds_per_step(self) -> float:
        """Mean over the steps."""
        return self.seconds / max(1, self.steps)


class Measurement:
    """The finished runs of one measured MODEL, oldest first. It only ever grows."""

    def __init__(self) -> None:
        self.runs: tuple[RunRecord, ...] = ()

    def append(self, run: RunRecord) -> None:
        self.runs += (run,)

    def behind(self, ancestors: frozenset[str]) -> RunRecord | None:
        """The run that made a clip with these upstream fingerprints: the last match, else the last run, else None.

        Without a match (a sampler inside an expanded subgraph, or no graph at all) the last run is the best answer.
        """
        matching = [run for run in self.runs if run.origin in ancestors]
        return (matching or list(self.runs) or [None])[-1]


@dataclass
class Running:
    """What is known of a run in progress. It travels in the options of the run and is dropped with them."""

    seconds: float = 0.0
    steps: int = 0
    calls: int = 0

    def __deepcopy__(self, memo: dict) -> Running:
        return self  # with several GPUs the options are copied for each: the counts are of one run


class Stopwatch:
    """The wrappers around one MODEL's sampling."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement
        self.key = f"{KEY}.{id(self)}"  # a model may be measured twice

    def outer_sample(self, executor, *args, **kwargs):
        """Around a whole run, model loading included."""
        guider = executor.class_obj
        device, options = guider.model_patcher.load_device, guider.model_options["transformer_options"]
        run = options[self.key] = Running()
        try:
            synchronize(device)
            start = time.perf_counter()
            with PeakMemory(device) as peak:
                output = executor(*args, **kwargs)
                synchronize(device)
            setup = time.perf_counter() - start - run.seconds
        finally:
            options.pop(self.key, None)
        origin = executing_fingerprint()
        self.measurement.append(RunRecord(run.seconds, setup, run.steps, run.calls, peak.bytes, peak.what, origin))
        return output

    def sampler_sample(self, executor, guider, sigmas, *args, **kwargs):
        """Around the sampler's loop."""
        device = guider.model_patcher.load_device
        synchronize(device)
        start = time.perf_counter()
        output = executor(guider, sigmas, *args, **kwargs)
        synchronize(device)
        run = guider.model_options["transformer_options"][self.key]
        run.seconds = time.perf_counter() - start
        run.steps = max(0, sigmas.shape[-1] - 1)
        return output

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None,
                    **kwargs):
        """Around every model call."""
        options = transformer_options or {}
        if self.key in options:  # a model call outside a run, by another node, is not counted
            options[self.key].calls += 1
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def attach_stopwatch(model) -> tuple[object, Measurement]:
    """A clone of `model` (a ComfyUI MODEL) that measures its runs, and the Measurement that they go to.

    The wrappers sit outermost, whatever was or will be patched, so that every patch's own cost is inside.
    """
    from .. import host  # here, so that what needs no ComfyUI is importable without it

    measured, measurement = model.clone(), Measurement()
    watch = Stopwatch(measurement)
    for wrapper in (watch.outer_sample, watch.sampler_sample, watch.apply_model):
        host.wrap_outermost(measured, wrapper.__name__.upper(), KEY, wrapper)
    return measured, measurement


def run_behind(measurement: Measurement, name: str) -> RunRecord | None:
    """The run that made the clip on input `name` of the node that is running now."""
    from .. import host

    found = host.executing_node()
    return measurement.behind(upstream(*found, name) if found else frozenset())


def executing_fingerprint() -> str | None:
    """Fingerprint of the node that is running now, None outside a graph."""
    from .. import host

    found = host.executing_node()
    return fingerprint(*found) if found else None
