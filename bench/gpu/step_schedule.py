"""What each step of a run is, by the pack's own presets, and the seconds of the run from those of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from interspatial.models.attention import SparseAttention
from interspatial.models.attention.presets import Preset
from interspatial.models.cache.plan import plans_of
from interspatial.models.host import patches_of
from interspatial.models.host.rehearsal import sigmas_of

from .step_variants import stacks

SAMPLER, SCHEDULER = "euler", "simple"


def kinds_of(model, preset: Preset, steps: int) -> list[str]:
    """"dense", "sparse" or "forecast" for each step of a run of a MODEL with the pack's patches, one call each.

    preset: of sparse attention, for what the patch leaves to it
    """
    plans = plans_of(model, sigmas_of(model, steps, SAMPLER, SCHEDULER), SAMPLER)
    forecast = {call.step for plan in plans for call in plan.calls if call.does == "forecast"}
    whens = [patch.method.when.resolved(preset, steps) for patch in patches_of(model)
             if isinstance(patch.method, SparseAttention)]  # fmt: skip

    def kind(step: int) -> str:
        if step in forecast:
            return "forecast"
        return "sparse" if any(when.first <= step < steps - when.last for when in whens) else "dense"

    return [kind(step) for step in range(steps)]


def with_dense_layers(model, preset: Preset, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each kind of step, where those of the sparse one were measured with all layers sparse."""
    share = len(preset.dense_layers) / sum(stacks(model).values())
    sparse = seconds["sparse"] + share * (seconds["dense"] - seconds["sparse"])
    return {**seconds, "sparse": sparse}


def whole_run(kinds: Sequence[str], seconds: Mapping[str, float]) -> float:
    """Seconds of a run. seconds: of a step of each kind"""
    return sum(seconds[kind] for kind in kinds)
