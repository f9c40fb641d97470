"""Cache Plan: which steps a step cache will run, and which it will forecast, before the render."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.cache.plan import plans_of
from ..models.host.rehearsal import function_of, sigmas_of
from ..models.host.sampling import SAMPLERS, SCHEDULERS
from ..models.measure.cache_plan_picture import draw_plans
from ..models.measure.cache_plan_table import as_text, cells, describe, step_lines


class CachePlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialCachePlan",
            display_name="Cache Plan",
            category="interspatial/measure",
            description="Shows before the render what Step Cache will do: which model calls run, which are forecast "
            "and from what, how many are saved, and what the history takes. Nothing of the model runs.",
            search_aliases=["step cache", "preview", "schedule", "sigmas", "taylorseer", "skip steps", "saving"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model with Step Cache on it, as the sampler gets it: with its shift "
                               "and its LoRAs."),
                *schedule_inputs(),
                *size_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Sigma over the steps, what runs, and what forecasts "
                                "are made of."),
                io.String.Output(display_name="report", tooltip="The same in words, with a line for each model call."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, steps=20, sampler="euler", scheduler="simple", denoise=1.0, sigmas=None, custom_sampler=None,
        latent_image=None, prompts=2,
    ) -> io.NodeOutput:  # fmt: skip
        given = sigmas is not None
        sigmas = sigmas if given else sigmas_of(model, steps, sampler, scheduler, denoise)
        plans = planned(model, sigmas, custom_sampler or sampler, latent_image)
        name = function_of(custom_sampler).removeprefix("sample_") if custom_sampler else sampler
        heading = f"{len(sigmas) - 1} steps of {name or 'an unknown sampler'}, {'given sigmas' if given else scheduler}"
        table = as_text(cells(plans, prompts))
        words = [heading, *(line for plan in plans for line in describe(plan, prompts)), *table]
        report = "\n".join([*words, *(line for plan in plans for line in ("", *step_lines(plan)))])
        sheet = draw_plans(plans, heading, prompts).unsqueeze(0)
        host.show_text("\n".join(words), getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(sheet, report, ui=shown)


def planned(model, sigmas, sampler, latent) -> list:
    """The plans of the caches on the model."""
    try:
        plans = plans_of(model, sigmas, sampler, latent)
    except ValueError as error:
        raise ValueError(f"Cache Plan: {error}") from error
    if not plans:
        raise ValueError(
            "Cache Plan: this model has no Step Cache on it, so every step runs. Accepted: a model that has passed "
            "through Step Cache. Connect the model output of that node."
        )
    return plans


def schedule_inputs() -> list:
    """The run to come."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, optional=True,
                     tooltip="Steps of the run, as in the sampler node."),
        io.Combo.Input("sampler", options=list(SAMPLERS), default="euler", optional=True,
                       tooltip="Sampler of the run. Others: connect custom_sampler."),
        io.Combo.Input("scheduler", options=list(SCHEDULERS), default="simple", optional=True,
                       tooltip="Noise schedule of the run. Others: connect sigmas."),
        io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="Share of the noise range that is run, as in the sampler node; 1 for new clips."),
        io.Sigmas.Input("sigmas", optional=True,
                        tooltip="The schedule itself, for custom sampling; steps, scheduler and denoise then count for "
                        "nothing."),
        io.Sampler.Input("custom_sampler", optional=True,
                         tooltip="The sampler itself, for custom sampling, in place of sampler."),
    ]  # fmt: skip


def size_inputs() -> list:
    """What the history is counted by."""
    return [
        io.Latent.Input("latent_image", optional=True,
                        tooltip="The latent that will be sampled; adds the size of the history, which grows with it."),
        io.Int.Input("prompts", default=2, min=1, max=64, optional=True, advanced=True,
                     tooltip="Prompts in each model call, each with a history of its own: 2 with a negative prompt, 1 "
                     "at cfg 1."),
    ]  # fmt: skip
