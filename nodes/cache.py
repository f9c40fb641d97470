"""Step Cache: evaluations of the model that are forecast from earlier ones."""

from __future__ import annotations

from comfy_api.latest import io

from ..models import host
from ..models.cache import CACHES, PACES, SITES, StepCache
from ..models.report import Card

PRESET = "preset"
HISTORY = {"auto": "auto", "device": "device", "system memory": "cpu"}


class StepCacheNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialStepCache",
            display_name="Step Cache",
            category="interspatial/speed",
            description="Leaves out steps of the model and forecasts what it would have answered. Works on every "
            "native video model; Cache Plan shows beforehand which steps run, and the report on the node what was "
            "saved.",
            search_aliases=["cache", "step cache", "taylorseer", "teacache", "easycache", "delta dit",
                            "first block cache", "spectrum", "skip steps", "faster", "speed up"],
            inputs=[
                io.Model.Input("model", tooltip="A video diffusion model, patched or not; patches may be wired in any "
                               "order."),
                method_input(),
                schedule_input(),
                *settings(),
            ],
            outputs=[io.Model.Output(tooltip="The same model with the cache. Goes to the sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, method, schedule, **rest) -> io.NodeOutput:
        if other := host.other_cache(model):
            raise ValueError(
                f"Step Cache: the model already has {other} on it, and two caches of different make do not see each "
                f"other's forecasts. Remove {other}, or this node."
            )
        node_id = getattr(cls.hidden, "unique_id", None)
        card = Card("cache", "cache", skips="whole evaluations, or their blocks")
        return io.NodeOutput(host.attach_step(model, card, step_cache(method, schedule, **rest), node_id))


def method_input():
    """The list of methods, each with its own widgets, from the registry."""
    return io.DynamicCombo.Input(
        "method",
        options=[io.DynamicCombo.Option(name, chosen.inputs(io)) for name, chosen in CACHES.items()],
        tooltip="What takes the place of a step that does not run. "
        + " ".join(f"{name}: {m.summary}." for name, m in CACHES.items()),
    )


def schedule_input():
    """Which steps run, from the list of paces."""
    return io.DynamicCombo.Input(
        "schedule",
        options=[
            io.DynamicCombo.Option(PRESET, []),
            *(io.DynamicCombo.Option(name, pace.inputs(io)) for name, pace in PACES.items()),
        ],
        tooltip="Which steps run. preset: by model family and number of steps. "
        + " ".join(f"{name}: {pace.summary}." for name, pace in PACES.items()),
    )


def settings() -> list:
    """What any method takes; the arguments of `step_cache`."""
    return [
        io.Int.Input("first_steps", default=-1, min=-1, max=1000, optional=True,
                     tooltip="Steps at the start that always run; they decide the layout. -1: the preset of the model "
                     "family."),
        io.Int.Input("last_steps", default=-1, min=-1, max=1000, optional=True,
                     tooltip="Steps at the end that always run; they make the fine detail. -1: the preset."),
        io.Combo.Input("put_back_at", options=["auto", *SITES], default="auto", optional=True, advanced=True,
                       tooltip="What is kept and forecast. output: the whole model's answer, smallest; last block: the "
                       "hidden states before the head; modules: each attention and feed-forward, gigabytes; auto: by "
                       "model family. Methods that work inside the blocks have a place of their own."),
        io.Combo.Input("history", options=list(HISTORY), default="auto", optional=True, advanced=True,
                       tooltip="Where kept answers lie. auto: on the device while its memory is ample, else in system "
                       "memory."),
    ]  # fmt: skip


def step_cache(method: dict, schedule: dict, first_steps=-1, last_steps=-1, put_back_at="auto",
               history="auto") -> StepCache:  # fmt: skip
    """The widgets as a StepCache."""
    method, schedule = dict(method), dict(schedule)
    chosen = CACHES[method.pop("method")](**method)
    pace = schedule.pop("schedule")
    return StepCache(
        chosen,
        None if pace == PRESET else PACES[pace](**schedule),
        None if first_steps < 0 else first_steps,
        None if last_steps < 0 else last_steps,
        None if put_back_at == "auto" else put_back_at,
        HISTORY[history],
    )
