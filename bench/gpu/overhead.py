"""What the pack's bookkeeping costs in Python: the hooks of nodes that stand aside, for each attention call.

    python -m bench.gpu.overhead            on this machine; a CPU will do

A Wan of 40 blocks, so narrow and with so few tokens that arithmetic is small beside Python. A model of real size does
the same calls; on a GPU they run ahead of the device, and cost time only where the device waits for them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from interspatial.models.attention import When

from . import step_variants as put
from .models import SMALL_WAN, SMOKE, random_model
from .stage import Bench, Stage
from .step_clock import Clock, run, the_device, wall_time

BLOCKS = 40
CALLS = 2 * BLOCKS  # of attention in an evaluation: to the video itself, and to the text
STEPS, WARM, ROUNDS = 4, 1, 24
SMOKE_ROUNDS = 2

SHAPE = replace(
    SMOKE["wan480"], network=replace(SMALL_WAN, config=SMALL_WAN.config | {
        "dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": BLOCKS}),
    latents=((1, 16, 2, 8, 8),), text=(8, 4096))  # fmt: skip

MAKERS: dict[str, Callable] = {
    "no patch": lambda model: model,
    "sparse attention, aside": lambda model: put.sparse(model, 0.2, When(min_tokens=put.NEVER)),
    "step cache, aside": lambda model: put.cached(model, put.preset_cache()),
    "both, aside": put.aside,
}


def microseconds(seconds: dict[str, list[float]], setting: str) -> float:
    """Of a setting above none, for each attention call: by the least step of each, which noise only adds to."""
    return 1e6 * (min(seconds[setting]) - min(seconds["no patch"])) / CALLS


def overhead(bench: Bench) -> None:
    if all(bench.has(what="python", shape=SHAPE.name, setting=setting) for setting in MAKERS):
        return
    device = the_device()
    # on a CPU the process's own time, which others on the machine do not change
    clock = Clock(time.process_time if device.type == "cpu" else partial(wall_time, device))
    with torch.inference_mode():
        plain = clock.on(random_model(SHAPE.network, device.type))
        models = {setting: make(plain) for setting, make in MAKERS.items()}
        seconds: dict[str, list[float]] = {setting: [] for setting in models}
        for number in range(1 + (SMOKE_ROUNDS if bench.smoke else ROUNDS)):
            for setting, model in models.items():
                steps = run(model, clock, SHAPE, STEPS).seconds[WARM:]
                if number:  # the first round warms up
                    seconds[setting] += steps
    for setting in models:
        bench.put(what="python", shape=SHAPE.name, setting=setting, evaluation=min(seconds[setting]), calls=CALLS,
                  microseconds_a_call=microseconds(seconds, setting),
                  seconds_an_evaluation=1e-6 * CALLS * microseconds(seconds, setting))  # fmt: skip


STAGES = (Stage(
    "overhead",
    f"A Wan of {BLOCKS} blocks of width 128 on 32 tokens, through ComfyUI's KSampler: without patches and with nodes "
    f"that stand aside, in turn, {ROUNDS} runs of {STEPS} steps, the first of each left out. The least evaluation of "
    f"each setting, the difference over the {CALLS} attention calls of an evaluation. On a CPU the process's own time, "
    "one core.",
    30, overhead,
),)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overhead(Bench.of(Path(folder) / "overhead.json", the_device().type, False, 600))


if __name__ == "__main__":
    main()
