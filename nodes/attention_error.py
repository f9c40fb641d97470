"""Measure Attention Error: how far sparse attention is from dense, on the activations of a real run."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.attention import METHODS, ORDERS, Blocks
from ..models.host.sampling import sample
from ..models.measure import error_sheet, error_table, looks_picture
from ..models.measure.attention_error import AttentionMeter, Findings, Place
from ..models.measure.candidates import candidates, middle_density, parse_densities, parse_methods
from ..models.report import Card
from .run_inputs import run_settings
from .speed import TAILS


class MeasureAttentionError(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialMeasureAttentionError",
            display_name="Measure Attention Error",
            category="interspatial/measure",
            description="Samples once and holds sparse attention methods against dense attention, call by call: "
            "relative L2 error, recall of softmax mass and density, as a table, plots, and a picture of the places "
            "that one place of the video looks at.",
            search_aliases=["sparse attention", "error", "recall", "density", "heat map", "attention map",
                            "calibrate", "meter"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A video diffusion model. Sparse patches on it are measured too."),
                io.Conditioning.Input("positive", tooltip="The prompt whose attention is measured."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size and length that you render."),
                *run_inputs(),
                *what_inputs(),
                *place_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Plots, the table, and the error by layer and step."),
                io.Image.Output(display_name="looks", tooltip="The places that the query looks at, by method."),
                io.String.Output(display_name="report", tooltip="The table in words."),
                io.String.Output(display_name="data", tooltip="Every measured call as JSON, with each head's figures."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, methods="all", densities="0.5"):
        try:
            parse_methods(methods)
            parse_densities(densities)
        except ValueError as error:
            return f"Measure Attention Error: {error}"
        return True

    @classmethod
    def execute(
        cls, model, positive, latent_image, negative=None, vae=None, seed=0, steps=20, cfg=5.0, sampler="euler",
        scheduler="simple", **what,
    ) -> io.NodeOutput:  # fmt: skip
        found = Findings()
        meter = meter_of(found, **what)
        measured = host.attach_attention(model, Card("attention error", "measure"), meter)
        latent = sample(measured, positive, negative, latent_image, seed=seed, steps=steps, cfg=cfg, sampler=sampler,
                        scheduler=scheduler)  # fmt: skip
        if not any(record.recalls for record in found.records):
            raise ValueError(nothing_measured(found, host.report_of(measured)))
        table, lines = error_table.rows_of(found), error_table.describe(found, meter.rows)
        beneath = host.report_of(measured).splitlines()[1:]  # the first line is the meter's own
        report = "\n".join([*lines, *error_table.as_text(table), *beneath])
        frames = looks_picture.frames_of(latent, vae)
        sheets = error_sheet.draw_errors(found, table, lines), looks_picture.draw_looks(found, frames, meter)
        sheets = [sheet.unsqueeze(0) for sheet in sheets]
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        images = [image for sheet in sheets for image in ui.PreviewImage(sheet, cls=cls).as_dict()["images"]]
        shown = {"images": images, **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(*sheets, report, error_table.as_json(found), ui=shown)


def run_inputs() -> list:
    """The run in which attention is measured."""
    return [
        io.Conditioning.Input("negative", optional=True,
                              tooltip="The negative prompt of the run. Without it the run has no guidance."),
        io.Vae.Input("vae", optional=True,
                     tooltip="Decodes the frames that the looks are laid over; without it they lie over the latent."),
        *run_settings("Steps of the run, as many as you render with."),
    ]  # fmt: skip


def what_inputs() -> list:
    """What is measured, and where in the run."""
    return [
        io.String.Input("methods", default="all", optional=True,
                        tooltip=f"Methods to hold against dense attention: all, or some of {', '.join(METHODS)}."),
        io.String.Input("densities", default="0.5, 0.3, 0.2, 0.1", optional=True,
                        tooltip="Shares of attention blocks computed exactly, each tried with each method, 0.1 to 0.5 "
                        "typically; auto: the method's own rule, or the preset of the model family."),
        io.Combo.Input("tail", options=list(TAILS), default="each query", optional=True,
                       tooltip="What becomes of the blocks that are not kept, as in Sparse Video Attention."),
        io.Int.Input("measured_steps", default=3, min=0, max=1000, optional=True,
                     tooltip="Steps to measure, spread over the run; 3 shows the trend, 0 measures all."),
        io.Int.Input("measured_layers", default=4, min=0, max=1000, optional=True,
                     tooltip="Layers to measure, spread from the first to the last; 4 shows the trend, 0 measures "
                     "all. Time grows with layers x steps x methods x densities."),
        io.Int.Input("rows", default=256, min=16, max=65536, step=16, optional=True, advanced=True,
                     tooltip="Query rows of each call that are computed exactly to judge by, spread over the video. "
                     "256 give the error of a call to a few percent of itself; more is finer and slower."),
        io.Combo.Input("block_order", options=["auto", *ORDERS], default="auto", optional=True, advanced=True,
                       tooltip="Which tokens share a block, as in Sparse Video Attention."),
        io.Int.Input("block_side", default=0, min=0, max=16, optional=True, advanced=True,
                     tooltip="Tokens along a block's side. 0: blocks of 64 tokens; 2 to 4 suit tiny models."),
    ]  # fmt: skip


def place_inputs() -> list:
    """The query whose looks are shown."""
    return [
        io.Float.Input("query_x", default=0.5, min=0.0, max=1.0, step=0.01, optional=True,
                       tooltip="The place whose looks are shown: 0 is the left edge, 1 the right one."),
        io.Float.Input("query_y", default=0.5, min=0.0, max=1.0, step=0.01, optional=True,
                       tooltip="The place whose looks are shown: 0 is the top, 1 the bottom."),
        io.Float.Input("query_frame", default=0.5, min=0.0, max=1.0, step=0.01, optional=True,
                       tooltip="The frame whose looks are shown: 0 is the first, 1 the last one."),
    ]  # fmt: skip


def meter_of(
    found, methods="all", densities="0.5, 0.3, 0.2, 0.1", tail="each query", measured_steps=3, measured_layers=4,
    rows=256, block_order="auto", block_side=0, query_x=0.5, query_y=0.5, query_frame=0.5,
) -> AttentionMeter:  # fmt: skip
    """The widgets as a meter that fills `found`."""
    blocks = Blocks(None if block_order == "auto" else block_order, block_side)
    wanted = parse_densities(densities)
    return AttentionMeter(
        candidates(parse_methods(methods), wanted, blocks, TAILS[tail]), found, measured_steps, measured_layers, rows,
        Place(query_x, query_y, query_frame), middle_density(wanted), host.check_interrupt,
    )  # fmt: skip


def nothing_measured(found: Findings, report: str) -> str:
    """The error of a run in which no candidate could be measured."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in found.reasons) or report
    return (
        f"Measure Attention Error: no method could be measured ({reasons}). It needs a video model that the pack "
        "knows, attention without a mask per query, and a core sampler."
    )
