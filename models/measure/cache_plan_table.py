"""The plans of step caches in words: what each leaves out, why, and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..cache.plan import Plan

HEAD = ("cache", "model calls", "run", "forecast", "open", "saving", "history")


def describe(plan: Plan, prompts: int) -> list[str]:
    """One plan, a line for each thing. prompts: evaluated in each model call"""
    place = "inside the blocks" if plan.cache.method.blocks else f"put back at {plan.settled.site}"
    lines = [f"{settings_of(plan.cache.method)}; {place}"]
    if plan.entries:
        lines.append(schedule_of(plan))
    lines.append(verdict(plan))
    if plan.blocks and not plan.count("depends"):
        lines.append(f"a forecast still runs the other blocks: {plan.blocks} block forwards in all")
    lines.append(kept(plan, prompts))
    if plan.ahead.assumed:
        lines.append(f"one model call a step is assumed: {plan.ahead.assumed}")
    return lines


def schedule_of(plan: Plan) -> str:
    """Which steps run, in words."""
    cache, settled = plan.cache, plan.settled
    pace = "" if cache.method.decides else f"{settings_of(settled.pace)}; "
    ends = f"the first {settled.first} and the last {settled.last} of {plan.ahead.schedule.steps} steps always run"
    from_preset = None in (cache.pace, cache.first, cache.last)
    return f"{pace}{ends}" + (f"; what is left open follows the preset: {settled.preset.name}" if from_preset else "")


def verdict(plan: Plan) -> str:
    """What the plan comes to, or why nothing is left out."""
    if plan.why:
        return f"no call can be left out: {plan.why}"
    open_ = plan.count("depends")
    by = "the latent" if any(call.why == "by the latent" for call in plan.calls) else "what the model answers"
    sure = f"{plan.count('forecast')} of {len(plan.calls)} model calls are forecast"
    return f"{sure} for sure, {open_} more depend on {by}" if open_ else sure


def kept(plan: Plan, prompts: int) -> str:
    """What the history takes, in words."""
    if not plan.entries:
        return "history: none"
    found = plan.history(prompts)
    size = "connect latent_image to see its size" if found is None and not plan.ahead.shapes else bytes_of(found)
    what = "differences" if plan.cache.method.blocks else "outputs"
    return f"history: {plan.entries} {what} for each of {prompts} {'prompt' if prompts == 1 else 'prompts'}, {size}"


def settings_of(settings: object) -> str:
    """A method or a pace with its settings: "TaylorSeer, order 1"."""
    values = (f"{each.name.replace('_', ' ')} {getattr(settings, each.name)}" for each in fields(settings))
    return ", ".join((settings.label, *values))


def cells(plans: Sequence[Plan], prompts: int) -> list[tuple[str, ...]]:
    """The table, head first, one row for each plan."""
    rows = [
        (
            plan.cache.method.label, str(len(plan.calls)),
            *(str(plan.count(does)) for does in ("run", "forecast", "depends")), saving_of(plan),
            bytes_of(plan.history(prompts)),
        )
        for plan in plans
    ]  # fmt: skip
    return [HEAD, *rows]


def saving_of(plan: Plan) -> str:
    """Share of the model calls that is forecast, in percent; of their blocks where only those are left out."""
    least, most = (round(100 * share) for share in plan.saving)
    if plan.blocks and least == most:
        ran, _, total = plan.blocks.split()
        least = most = round(100 * (1 - int(ran) / int(total)))
    return f"{least} %" if least == most else f"{least} to {most} %"


def bytes_of(count: int | None) -> str:
    """17.3 MB, 1.34 GB; "unknown" for None."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def as_text(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The table, as lines with bars between the columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in rows]  # fmt: skip
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def step_lines(plan: Plan) -> list[str]:
    """One line for each step: 4  0.857  forecast from 2 (-0.54), 3 (+1.54)."""
    calls_of: dict[int, list[int]] = {}
    for number, call in enumerate(plan.calls):
        calls_of.setdefault(call.step, []).append(number)
    names = {number: str(step) if len(numbers) == 1 else f"{step}.{i}"
             for step, numbers in calls_of.items() for i, number in enumerate(numbers)}  # fmt: skip
    return [f"{names[number]:>5}  {call.sigma:.4f}  {_does(call, names)}" for number, call in enumerate(plan.calls)]


def _does(call, names: dict[int, str]) -> str:
    if call.does == "forecast":
        return "forecast from " + ", ".join(f"{names[number]} ({weight:+.2f})" for number, weight in call.made_of)
    return f"{call.does if call.does == 'run' else 'open'}: {call.why}"
