"""Runs the parts of a warm-up one after the other; says what each compiled, how long it took, and which tiles won."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

import torch

from .. import kernels
from ..kernels.dispatch import Dispatch
from ..kernels.triton_compiles import Compiled, listening
from ..kernels.triton_tiles import Choice, Tuner
from ..kernels.tuned_tiles import in_words
from .measure.memory import synchronize
from .warm_up import Task


def perform(tasks: list[Task], device: torch.device, tick: Callable[[int], None]) -> str:
    """The report. A part that fails says so in it and ends nothing. tick: is told how many parts are done"""
    began, lines, count = time.perf_counter(), [], 0
    for done, task in enumerate(tasks, 1):
        if task.reason is None:
            heard, told = _performed(task, device)
            count += len(heard)
            lines += told
        else:
            lines.append(f"{task.name}: nothing to warm up: {task.reason}")
        tick(done)
    seconds = time.perf_counter() - began
    heading = f"ready in {seconds:.1f} s, {count} {'kernel' if count == 1 else 'kernels'} compiled or loaded"
    return "\n".join([heading, *lines] if any(task.reason is None for task in tasks) else lines)


def _performed(task: Task, device: torch.device) -> tuple[list[Compiled], list[str]]:
    known, failures = chosen_tiles(), _failures()
    began, trouble = time.perf_counter(), []
    with listening() as heard:
        try:
            task.run()
            synchronize(device)
        except Exception as error:  # the run itself may go another way, or say it better
            said = next(iter(str(error).splitlines()), "")
            trouble = [f"  failed: {type(error).__name__}: {said}"]
    seconds = time.perf_counter() - began
    found = [f"  tile of {kind}: {_chosen(choice)}" for kind, choice in chosen_tiles() if (kind, choice) not in known]
    trouble += [f"  {reason}" for reason in _failures() if reason not in failures]
    none = [] if heard or trouble else ["  nothing was compiled: it is ready already, or runs without Triton"]
    return heard, [f"{task.name}: {seconds:.1f} s", *_by_kernel(heard), *none, *found, *trouble]


def _by_kernel(heard: list[Compiled]) -> list[str]:
    lines = []
    for name in dict.fromkeys(one.kernel for one in heard):
        variants = [one for one in heard if one.kernel == name]
        fresh = [one for one in variants if not one.cached]
        told = f"{len(fresh)} compiled in {sum(one.seconds for one in fresh):.1f} s" if fresh else ""
        loaded = f"{len(variants) - len(fresh)} from Triton's cache" if len(fresh) < len(variants) else ""
        lines.append(f"  {name}: {', '.join(filter(None, (told, loaded)))}")
    return lines


def _chosen(choice: Choice) -> str:
    times = f" of {len(choice.times)}, {choice.times[choice.tile]:.2f} ms" if choice.times else ""
    return f"{in_words(choice.tile)}; {choice.source}{times}"


def tuners() -> list[Tuner]:
    """Those of all kernels."""
    return [part.TUNER for part in _parts("TUNER") if isinstance(part.TUNER, Tuner)]


def chosen_tiles() -> list[tuple[str, Choice]]:
    """What the tuners have chosen so far, with the kind."""
    return [(tuner.kind(key).strip(), choice) for tuner in tuners() for key, found in tuner.chosen.items()
            for choice in found]  # fmt: skip


def _failures() -> list[str]:
    """Why backends of the kernels' operations were given up: each goes on with its next one, and nothing else says so
    in a warm-up.
    """
    found = (part.BACKENDS for part in _parts("BACKENDS") if isinstance(part.BACKENDS, Dispatch))
    return [f"{operation.operation}: {key[0]}: {reason}" for operation in found
            for key, reason in operation.failures.items()]  # fmt: skip


def _parts(name: str) -> list[ModuleType]:
    """The modules of `kernels` that have something of that name: operations add themselves, as their methods do."""
    return [part for part in vars(kernels).values() if isinstance(part, ModuleType) and hasattr(part, name)]
