"""The settings of a sampling run, for nodes that sample by themselves to look at a model."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.host.sampling import SAMPLERS, SCHEDULERS


def run_settings(steps: str, others: str = "") -> list:
    """Seed, steps, cfg, sampler and scheduler.

    steps: tooltip of the number of steps    others: what to say of other samplers and schedules
    """
    return [
        io.Int.Input("seed", default=0, min=0, max=2**53, control_after_generate=True, optional=True,
                     tooltip="Noise of the run."),
        io.Int.Input("steps", default=20, min=1, max=10000, optional=True, tooltip=steps),
        io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, optional=True,
                       tooltip="Guidance of the run, as you render with; 1 without a negative prompt."),
        io.Combo.Input("sampler", options=list(SAMPLERS), default="euler", optional=True, advanced=True,
                       tooltip=f"Sampler of the run.{others}"),
        io.Combo.Input("scheduler", options=list(SCHEDULERS), default="simple", optional=True, advanced=True,
                       tooltip=f"Noise schedule of the run.{others}"),
    ]  # fmt: skip
