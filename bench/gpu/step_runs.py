"""Rows of whole runs, from the rows of their steps; and one real short run beside its sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from interspatial.models.attention import When

from . import step_variants as put
from .step_clock import Ran
from .step_rows import Rows
from .step_schedule import kinds_of, whole_run, with_dense_layers

STEPS, CHECKED = 50, 12
MAIN = 0.2  # the density that is combined with everything else
DENSITIES = (0.1, 0.3)
PRESET_WHEN = When(first=None, dense_layers=None)  # as the node has it, but for its floor of tokens


def runs(rows: Rows, before: str, model: Callable) -> None:
    """Rows of 50 steps for all settings whose steps are measured.

    before: what those settings begin with, such as "w8a8 + "    model: () -> the MODEL that they are put on
    """
    dense, plain = rows.seconds(before.removesuffix(" + ") or "dense"), rows.seconds("dense")
    if dense is None or plain is None:
        return
    for setting, density, cache in _settings(rows, before):
        known = {"dense": dense, "sparse": dense, "forecast": forecast(rows, before) if cache else 0.0}
        if density is not None:
            known["sparse"] = rows.seconds(f"{before}sparse {density:g}")
        if None in known.values() or rows.has("run", setting):
            continue
        with rows.attempt("run", setting):
            kinds, seconds = added_up(rows, model(), density, cache, STEPS, known)
            counts = {f"{kind}_steps": kinds.count(kind) for kind in ("dense", "sparse", "forecast")}
            rows.put("run", setting, steps=STEPS, seconds=seconds, speedup=STEPS * plain / seconds, **counts,
                     preset=rows.shape.preset.name, preset_density=density == rows.shape.preset.density)  # fmt: skip


def _settings(rows: Rows, before: str) -> Iterator[tuple[str, float | None, bool]]:
    """Setting, density, and whether a cache is on."""
    yield before.removesuffix(" + ") or "dense", None, False
    for density in dict.fromkeys((MAIN, rows.shape.preset.density, *DENSITIES)):
        yield f"{before}sparse {density:g}", density, False
        yield f"{before}sparse {density:g} + cache", density, True
    yield f"{before}cache", None, True


def forecast(rows: Rows, before: str) -> float | None:
    """Seconds of a forecast step: the cache forecasts the output, whatever the steps that run are made of."""
    found = (rows.seconds(name, "forecast") for name in (f"{before}sparse {MAIN:g} + cache",
                                                         f"sparse {MAIN:g} + cache", "cache"))  # fmt: skip
    return next((value for value in found if value is not None), None)


def added_up(rows: Rows, model, density: float | None, cache: bool, steps: int,
             known: dict[str, float]) -> tuple[list[str], float]:  # fmt: skip
    """The kinds of the steps of a run by the presets, and its seconds. known: of each kind, all layers sparse"""
    kinds = kinds_of(by_presets(model, density, cache), rows.shape.preset, steps)
    if density is not None:
        known = with_dense_layers(model, rows.shape.preset, known)
    return kinds, whole_run(kinds, known)


def by_presets(model, density: float | None, cache: bool):
    """The nodes as they come, but for the density."""
    if density is not None:
        model = put.sparse(model, density, PRESET_WHEN)
    return put.cached(model, put.preset_cache()) if cache else model


def check(rows: Rows, model: Callable, timed: Callable[[object, int], Ran]) -> None:
    """A short run by the presets, beside the sum of its steps. timed: MODEL, steps -> its run"""
    setting = f"sparse {MAIN:g} + cache"
    known = {"dense": rows.seconds("dense"), "sparse": rows.seconds(f"sparse {MAIN:g}"),
             "forecast": forecast(rows, "")}  # fmt: skip
    if None in known.values() or not rows.due("checked", setting, CHECKED / 2):
        return
    with rows.attempt("checked", setting):
        kinds, summed = added_up(rows, model(), MAIN, True, CHECKED, known)
        ran = timed(by_presets(model(), MAIN, True), CHECKED)
        real = sum(ran.seconds)
        rows.put("checked", setting, steps=CHECKED, summed=summed, real=real, ratio=real / summed, kinds=kinds,
                 times=ran.seconds, report=ran.report)  # fmt: skip
