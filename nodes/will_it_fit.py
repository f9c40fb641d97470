"""Will It Fit: what a run takes on a card, before the run, with the weights as they are or in another format."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.fit_facts import Question, choices, fit_of
from ..models.measure.fit_picture import draw_fit, table_of
from ..models.quant.fit import GIB, Fit, details
from ..models.quant.recipe import Choice, Recipe
from .sockets import PLAN

AS_LOADED = "as loaded"


class WillItFit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialWillItFit",
            display_name="Will It Fit",
            category="interspatial/memory",
            description="Tells before the run whether a video fits on a card: weights in each format, activations of "
            "one evaluation, what caches keep, and the VAE. Says what would have to stream, and what would make it "
            "fit. Nothing is loaded and nothing is computed.",
            search_aliases=["vram", "memory", "out of memory", "oom", "offload", "estimate", "quantize", "gpu"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model as the sampler gets it, with its Step Cache."),
                io.Latent.Input("latent_image", tooltip="The latent that will be sampled: it has size and length."),
                io.Vae.Input("vae", optional=True, tooltip="Adds the decoding of the clip, whole and in tiles."),
                io.Conditioning.Input("positive", optional=True, tooltip="Adds images and references, which make the "
                                      "model see more tokens. Without it: a text of 512 tokens."),
                PLAN.Input("plan", optional=True, tooltip="A plan of Plan Mixed Precision; format counts for nothing "
                           "then."),
                io.Combo.Input("format", options=[AS_LOADED, *labels()], default=AS_LOADED, optional=True,
                               tooltip="How the weights of the blocks are kept: format and bits for each weight. What "
                               "the others would take is shown beside."),
                io.Float.Input("card_gb", default=0.0, min=0.0, max=4096.0, step=0.5, optional=True,
                               tooltip="Memory of the card as its maker states it, in GiB: 8, 12, 16, 24, 32. 0: the "
                               "one in this machine."),
                io.Int.Input("prompts", default=2, min=1, max=64, optional=True, advanced=True,
                             tooltip="Prompts evaluated at once: 2 with a negative prompt, 1 at cfg 1. Where two do "
                             "not fit, ComfyUI evaluates one after the other."),
                io.Combo.Input("act_bits", options=["8", "16"], default="8", optional=True, advanced=True,
                               tooltip="Activations of quantised layers: 8 multiplies whole numbers; 16 decodes each "
                               "weight before use, which takes memory for the largest layer."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="A bar for each way to keep the weights, and the "
                                "card's edge."),
                io.String.Output(display_name="report", tooltip="The same in words and figures."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, latent_image, vae=None, positive=None, plan=None, format=AS_LOADED, card_gb=0.0, prompts=2,
        act_bits="8",
    ) -> io.NodeOutput:  # fmt: skip
        question = Question(*asked(plan, format), round(card_gb * GIB), prompts, int(act_bits), positive)
        try:
            fit = fit_of(model, latent_image, question, vae)
        except ValueError as error:
            raise ValueError(f"Will It Fit: {error}") from error
        return shown(fit, getattr(cls.hidden, "unique_id", None), cls)


def asked(plan, format: str) -> tuple[str, Recipe | Choice | None]:
    """Name and recipe of what is asked for."""
    if plan is not None:
        return "plan", plan.recipe
    return (format, None) if format == AS_LOADED else (format, labels()[format])


def labels() -> dict[str, Choice]:
    """What weights may be kept in, by what the user sees."""
    return {choice.label: choice for choice in choices()}


def shown(fit: Fit, node_id: str | None, cls) -> io.NodeOutput:
    """Picture and report."""
    heading = f"{fit.chosen.name}: {fit.verdict} on {fit.card / GIB:.3g} GiB"
    report = "\n".join([*fit.lines(), "", *details(fit), "", *table_of(fit)])
    sheet = draw_fit(fit, heading).unsqueeze(0)
    host.show_text("\n".join(fit.lines()), node_id)
    return io.NodeOutput(sheet, report, ui={**ui.PreviewImage(sheet, cls=cls).as_dict(),
                                            **ui.PreviewText(report).as_dict()})  # fmt: skip
