"""Seconds of each step of a run through ComfyUI's KSampler, and the memory that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from interspatial.models import host
from interspatial.models.measure.memory import PeakMemory, resident_bytes, synchronize

from ..inprocess import Settings, sample
from .models import Shape


@dataclass
class Clock:
    """Around a sampler's whole call of the model: guidance, batching, every patch and the model itself.

    It is the outermost wrapper of a MODEL that gets it before any other, and none of this pack. now: seconds
    """

    now: Callable[[], float]
    seconds: list[float] = field(default_factory=list)

    def on(self, model):
        """A clone with the clock."""
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "bench", self)
        return model

    def __call__(self, executor, *args, **kwargs):
        began = self.now()
        out = executor(*args, **kwargs)
        self.seconds.append(self.now() - began)
        return out


def wall_time(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Ran:
    """seconds: of each step    above: bytes at the peak beside what lay there before    finite: the result is

    report: what the patches did, a line each
    """

    seconds: list[float]
    above: int
    finite: bool
    report: str

    @property
    def step(self) -> float:
        return median(self.seconds)


def run(model, clock: Clock, shape: Shape, steps: int) -> Ran:
    """A run of euler at cfg 1. model: with the clock on it"""
    clock.seconds, device = [], the_device()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else resident_bytes()
    with PeakMemory(device) as memory:
        out = sample(model, shape.prompt(), shape.prompt(), shape.latent(), Settings(steps=steps, cfg=1.0))
    parts = out.unbind() if out.is_nested else (out,)
    finite = all(bool(part.isfinite().all()) for part in parts)
    return Ran(clock.seconds, memory.bytes - before, finite, host.report_of(model).replace("\n", " | "))


def the_device() -> torch.device:
    """Where ComfyUI runs models in this process."""
    return comfy.model_management.get_torch_device()
