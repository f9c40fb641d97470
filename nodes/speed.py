"""Sparse Video Attention, and the report of what a model's patches did."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.attention import METHODS, ORDERS, Blocks, ErrorTarget, Ramp, SparseAttention, When, parse_layers
from ..models.report import Card
from ..models.schedule import StepWindow

TAILS = {"each query": "row", "each block": "block", "off": None}


class SparseVideoAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialSparseAttention",
            display_name="Sparse Video Attention",
            category="interspatial/speed",
            description="Computes the part of video attention that matters and approximates the rest. Works on every "
            "native video model; wherever it stands aside, the report on the node says why.",
            search_aliases=["sparse attention", "faster", "speed up", "block sparse", "draft attention",
                            "sol attention", "radial"],
            inputs=[
                io.Model.Input("model", tooltip="A video diffusion model, patched or not; patches may be wired in any "
                               "order."),
                method_input(),
                *settings(),
            ],
            outputs=[io.Model.Output(tooltip="The same model with sparse attention. Goes to the sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, method=None, dense_layers="auto", start_percent=0.0, end_percent=1.0):
        """`method` is here because ComfyUI always passes a DynamicCombo; its own check of that input is what counts."""
        try:
            parse_layers(dense_layers)
            StepWindow(start_percent, end_percent)
        except ValueError as error:
            return f"Sparse Video Attention: {error}"
        return True

    @classmethod
    def execute(cls, model, method, **settings) -> io.NodeOutput:
        choice = dict(method)
        chosen = METHODS[choice.pop("method")](**choice)
        node_id = getattr(cls.hidden, "unique_id", None)
        return io.NodeOutput(
            host.attach_attention(model, Card("sparse", "sparse"), sparse_attention(chosen, **settings), node_id)
        )


def method_input():
    """The list of methods, each with its own widgets, from the registry."""
    return io.DynamicCombo.Input(
        "method",
        options=[io.DynamicCombo.Option(name, chosen.inputs(io)) for name, chosen in METHODS.items()],
        tooltip="How blocks are chosen. " + " ".join(f"{name}: {m.summary}." for name, m in METHODS.items()),
    )


def settings() -> list:
    """When and how any method runs; the arguments of `sparse_attention`."""
    return [
        io.Combo.Input("tail", options=list(TAILS), default="each query", optional=True,
                       tooltip="What becomes of the blocks that are not kept. each query: they stay in the softmax as "
                       "their mean (best); each block: the same, one logit for a whole query block (cheaper); off: "
                       "dropped."),
        io.Float.Input("error_target", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                       tooltip="Relative L2 error of an attention call to aim at; the density of each layer and step "
                       "follows from measuring some rows exactly. 0.05 is close to dense, 0.1 typical, 0.2 fast. 0: "
                       "off, the density of the method counts."),
        io.Float.Input("max_density", default=0.6, min=0.05, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="The most that an error target may keep, as a share of blocks; where even that is not "
                       "enough, the report says so. Above 0.6 sparse attention is rarely faster than dense."),
        io.Int.Input("first_dense_steps", default=-1, min=-1, max=1000, optional=True,
                     tooltip="Steps at the start that stay dense; they decide the layout. -1: the preset of the model "
                     "family, a tenth to a third of the steps; 0 for none."),
        io.Int.Input("last_dense_steps", default=0, min=0, max=1000, optional=True, advanced=True,
                     tooltip="Steps at the end that are dense again; 0 for none, as most papers have it."),
        io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="Share of the model's noise range after which sparse attention begins; 0 is pure "
                       "noise."),
        io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="Share of the model's noise range after which attention is dense again; 1 is the "
                       "finished picture."),
        io.Int.Input("ramp_steps", default=0, min=0, max=1000, optional=True, advanced=True,
                     tooltip="Sparse steps over which the density falls from 1 to its value; 0: at once. 2 to 4 of 20 "
                     "steps soften the start. Counts for methods that are set by density."),
        io.Float.Input("ramp_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="The same as a share of the model's noise range, from start_percent on; 0: at once. "
                       "With both, the slower ramp counts."),
        io.String.Input("dense_layers", default="auto", optional=True, advanced=True,
                        tooltip="Layers that stay dense: auto (the preset of the model family), or numbers and "
                        "ranges, negative ones from the end, e.g. 0-1, -1. The first is fragile in most models."),
        io.Int.Input("min_tokens", default=8192, min=0, max=1_000_000, step=64, optional=True, advanced=True,
                     tooltip="Attention with fewer tokens stays dense, where it is faster. Wan 480p x 81 frames has "
                     "32,760 tokens; 0 for tiny models."),
        io.Combo.Input("block_order", options=["auto", *ORDERS], default="auto", optional=True, advanced=True,
                       tooltip="Which tokens share a block. strip: a near square of one frame, all of one size, "
                       "so that least is left empty; tile: a square of one frame; cube: a box over some frames; "
                       "raster: a run of a row; token_major: a few places through all frames; morton: a run of the Z "
                       "curve; auto: by model family."),
        io.Int.Input("block_side", default=0, min=0, max=16, optional=True, advanced=True,
                     tooltip="Tokens along a block's side; a run has side x side. 0: blocks of 64 tokens (8, or 4 for "
                     "cubes); 2 to 4 suit tiny models."),
        io.Boolean.Input("int8_products", default=False, optional=True, advanced=True,
                         tooltip="Let the kernel multiply queries and keys in 8 bits on NVIDIA 9.x and 10.x; elsewhere "
                         "nothing changes. Adds thousandths to the relative error of a call, where blocks that are "
                         "left out add hundredths."),
    ]  # fmt: skip


def sparse_attention(
    method, tail="each query", error_target=0.0, max_density=0.6, first_dense_steps=-1, last_dense_steps=0,
    start_percent=0.0, end_percent=1.0, ramp_steps=0, ramp_percent=0.0, dense_layers="auto", min_tokens=8192,
    block_order="auto", block_side=0, int8_products=False,
) -> SparseAttention:  # fmt: skip
    """The widgets as a SparseAttention."""
    first = None if first_dense_steps < 0 else first_dense_steps
    window = StepWindow(start_percent, end_percent)
    return SparseAttention(
        method,
        When(window, first, last_dense_steps, parse_layers(dense_layers), min_tokens),
        Blocks(None if block_order == "auto" else block_order, block_side),
        TAILS[tail],
        Ramp(ramp_steps, ramp_percent),
        ErrorTarget(error_target, max_density) if error_target else None,
        int8_products,
    )


class RunReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialRunReport",
            display_name="Run Report",
            category="interspatial/measure",
            description="What the patches on a model did in the run that just ended: layers and steps taken, share "
            "kept, and the reason wherever a patch stood aside.",
            search_aliases=["report", "log", "what happened", "sparse report", "debug"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Model.Input("model", tooltip="The patched model that the sampler used."),
                io.Latent.Input(
                    "after", optional=True, tooltip="The sampler's output, so that the report is read after the run."
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="One line a patch.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, after=None) -> io.NodeOutput:
        report = host.report_of(model) or "No run of this model has ended yet. Connect the sampler's output to 'after'."
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(report, ui=ui.PreviewText(report))
