"""The whole step of real video models: seconds, runs of 50 steps, memory, attention's share, the pack's own overhead.

Rows, each with `shape` and `setting`: "model" what was built; "step" seconds of a step; "cold" the first sparse block
of a process; "overhead" and "share" as ratios; "run" 50 steps, added up from steps as the presets have them; "checked"
such a sum beside a run of 12 steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, partial
from statistics import median

import torch
from interspatial.models.attention.draft import SINGLE
from interspatial.models.quant.recipe import Choice

from . import step_variants as put
from .models import SHAPES, SMOKE, Shape, fitting, forget, quantised_model, random_model
from .stage import Bench, Stage
from .step_clock import Clock, Ran, run, the_device, wall_time
from .step_rows import PLAIN, Rows
from .step_runs import CHECKED, DENSITIES, MAIN, STEPS, check, runs

SPARSE = f"sparse {MAIN:g}"
QUANTISED = {"w8a8": Choice("vidit_q", 8), "w4a8": Choice("vidit_q", 4)}
COMBINED = "w8a8"  # the one that the rest is combined with


class Whole:
    """One shape. Parts are in the order of what matters most, and begin only where there is time."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.bench, self.shape, self.rows = bench, shape, Rows(bench, shape)
        self.device = the_device()
        self.clock = Clock(partial(wall_time, self.device))

    def everything(self) -> None:
        self.dense_backends()
        if self.rows.seconds(PLAIN) is None:  # no time, or no room: the rest would only fail the same way
            return
        self.in_turn()
        self.cached_step(f"{SPARSE} + cache", lambda: put.sparse(self.base, MAIN))
        for density in dict.fromkeys((self.shape.preset.density, *DENSITIES)):
            if density != MAIN:
                self.alone(f"sparse {density:g}", lambda density=density: put.sparse(self.base, density), 0.7)
        self.alone(f"{SPARSE}, single", lambda: put.sparse(self.base, MAIN, query_blocks=SINGLE), 0.7)
        runs(self.rows, "", lambda: self.base)
        self.attention_share()
        self.cached_step("cache", lambda: self.base)
        runs(self.rows, "", lambda: self.base)
        check(self.rows, lambda: self.base, self.time)
        for name in ("model", "base"):  # room for quantised ones
            self.__dict__.pop(name, None)
        forget()
        for name, choice in QUANTISED.items():
            self.quantised(name, choice)
            forget()

    # the models

    @cached_property
    def model(self):
        """The MODEL with the clock on it."""
        network = fitting(self.shape.network, self.device.type)
        began = time.perf_counter()
        model = random_model(network, self.device.type)
        self.rows.put_model("weights as they are", model, network.depth, time.perf_counter() - began)
        return self.clock.on(model)

    @cached_property
    def base(self):
        """With the faster dense attention; the pack's patches go on this one."""
        return self.fastest(self.model)

    @property
    def backend(self) -> str:
        """Setting of the dense step with the other backend."""
        return f"dense, {put.OTHER_BACKEND[self.device.type][0]}"

    @property
    def override(self) -> Callable | None:
        """The attention override of the faster dense step; None: ComfyUI's own attention is faster, or all there is."""
        plain, other = self.rows.seconds(PLAIN), self.rows.seconds(self.backend)
        if plain is None or other is None or plain <= other:
            return None
        return put.by_backend(put.OTHER_BACKEND[self.device.type][1])

    def fastest(self, model):
        return model if self.override is None else put.with_override(model, self.override)

    # what is timed

    def time(self, model, steps: int = 1) -> Ran:
        return run(model, self.clock, self.shape, steps)

    def warm(self, model) -> float:
        """Seconds of the first block of each kind."""
        return self.time(put.short(model)).seconds[0]

    def dense_backends(self) -> None:
        """A dense step by ComfyUI's own choice of attention, and by the other backend."""
        other = put.by_backend(put.OTHER_BACKEND[self.device.type][1])
        makers = {PLAIN: lambda: self.model, self.backend: lambda: put.with_override(self.model, other)}
        for setting, make in makers.items():
            if self.rows.due("step", setting, 1):
                with self.rows.attempt("step", setting):
                    model = make()
                    self.warm(model)
                    self.rows.put_step(setting, model, [self.time(model)])

    def in_turn(self) -> None:
        """Dense, sparse and standing aside, round after round."""
        makers = {"dense": lambda: self.base, SPARSE: lambda: put.sparse(self.base, MAIN),
                  "aside": lambda: put.aside(self.base)}  # fmt: skip
        if not any(self.rows.due("step", name, 3) for name in makers):
            return
        models = {}
        for name, make in makers.items():
            with self.rows.attempt("step", name):
                model = make()
                first, second = self.warm(model), self.warm(model)
                models[name] = model
                if name == SPARSE:
                    self.rows.put("cold", name, first=first, second=second, more=first - second)
        ran: dict[str, list[Ran]] = {name: [] for name in models}
        for number in range(self.shape.rounds):
            longest = max((one.step for each in ran.values() for one in each), default=0.0)
            if number == 0 or self.bench.left() > 3 * longest:
                self.round(models, ran)
        for name, model in models.items():
            backend = {"backend": "ComfyUI" if self.override is None else self.backend} if name == "dense" else {}
            self.rows.put_step(name, model, ran[name], **backend)
        if "dense" in models and "aside" in models:
            # the least time of each: what disturbs a step only adds to it
            dense, aside = (min(one.step for one in ran[name]) for name in ("dense", "aside"))
            self.rows.put("overhead", "aside", dense=dense, aside=aside, share=aside / dense - 1)

    def round(self, models: dict, ran: dict[str, list[Ran]]) -> None:
        """One step of each; one that fails takes no further part."""
        for name in list(models):
            model = models.pop(name)
            with self.rows.attempt("step", name):
                ran[name].append(self.time(model))
                models[name] = model

    def alone(self, setting: str, make: Callable, steps: float) -> None:
        """A step, as often as there are rounds. steps: dense ones that one takes"""
        if self.rows.due("step", setting, steps * self.shape.rounds):
            with self.rows.attempt("step", setting):
                model = make()
                self.warm(model)
                self.rows.put_step(setting, model, [self.time(model) for _ in range(self.shape.rounds)])

    def cached_step(self, setting: str, make: Callable) -> None:
        """Steps that run and steps that are forecast, in one run."""
        full, forecast = put.PATTERN
        if self.rows.due("step", setting, full):
            with self.rows.attempt("step", setting):
                plain = make()
                self.warm(plain)
                model = put.cached(plain, put.pattern_cache())
                ran = self.time(model, full + forecast)
                runs_, guesses = median(ran.seconds[:full]), median(ran.seconds[full:])
                each = (runs_ + (put.INTERVAL - 1) * guesses) / put.INTERVAL
                self.rows.put_step(setting, model, [ran], seconds=each, full=runs_, forecast=guesses,
                                   interval=put.INTERVAL)  # fmt: skip

    def attention_share(self) -> None:
        """The time that goes when self attention hands its values on."""
        dense = self.rows.seconds("dense")
        if dense and self.rows.due("share", "attention", 0.7):
            with self.rows.attempt("share", "attention"):
                model = put.with_override(self.model, put.values_only(self.override))
                self.warm(model)
                rest = self.time(model).step
                self.rows.put("share", "attention", without=rest, dense=dense, share=1 - rest / dense)

    def quantised(self, name: str, choice: Choice) -> None:
        """The weights in few bits; in 8 bits with sparse attention and the cache too, which come first."""
        before = f"{name} + "
        combined = (name, f"{before}{SPARSE}", f"{before}{SPARSE} + cache") if name == COMBINED else (name,)
        if not any(self.rows.due("step", setting, 1.5) for setting in combined):
            return
        with self.rows.attempt("model", name):
            network = fitting(self.shape.network, self.device.type)
            began = time.perf_counter()
            model = quantised_model(network, choice, 8, self.device.type)
            self.rows.put_model(name, model, network.depth, time.perf_counter() - began)
            model = self.fastest(self.clock.on(model))
            if name == COMBINED:
                self.cached_step(f"{before}{SPARSE} + cache", lambda: put.sparse(model, MAIN))
            self.alone(name, lambda: model, 1.2)
            if name == COMBINED:
                self.alone(f"{before}{SPARSE}", lambda: put.sparse(model, MAIN), 0.7)
            runs(self.rows, before, lambda: model)


def whole(name: str) -> Callable[[Bench], None]:
    """What a stage runs."""

    def of(bench: Bench) -> None:
        with torch.inference_mode():
            Whole(bench, (SMOKE if bench.smoke else SHAPES)[name]).everything()

    return of


METHOD = (
    "A model of real size with random weights on ComfyUI's loader, patcher and KSampler (euler, cfg 1, a prompt of "
    "real length), weights on the card. Seconds: wall time of the sampler's call of the model, device synchronised "
    "before and after. dense, {sparse} and aside (both nodes on the model, standing aside) ran in turn, {rounds}; the "
    "others alone. dense has the faster of ComfyUI's own attention and cuDNN's, and everything else is put on that; "
    "speedup is against it, speedup_on_comfyui against ComfyUI as it comes. One block of each kind runs before timing, "
    "to warm up; cold is the very first of these. Sparse: draft, strips, query blocks of 128, tail for each query, all "
    "layers. Cache: taylorseer, two full steps and two forecast; seconds are those of interval {interval}. Peak: "
    "tensors of torch's allocator, with the weights of that model alone. run: {steps} steps added up as the nodes' "
    "presets have them (dense steps, dense layers, forecasts); checked: such a sum beside a real run of {checked} "
    "steps. w8a8, w4a8: ViDiT-Q weights, activations in 8 bits."
)


def _stage(name: str, seconds: float) -> Stage:
    rounds = SHAPES[name].rounds
    words = "once" if rounds == 1 else f"{rounds} times"
    method = METHOD.format(sparse=SPARSE, rounds=words, interval=put.INTERVAL, steps=STEPS, checked=CHECKED)
    return Stage(name, method, seconds, whole(name))


# Counted: all rows come to about 28 dense steps of wan, 20 of hunyuan and 15 of minimax_h3, by operations of 3, 11, 21
# and 35 seconds on an H200
STAGES = (_stage("wan480", 110), _stage("wan720", 300), _stage("hunyuan720", 430), _stage("minimax_h3", 540))
