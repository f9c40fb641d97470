"""Sparse Video Attention, and the report of what a model's patches did."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.attention import METHODS, Blocks, SparseAttention, When, parse_layers
from ..models.attention.method import ORDERS
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
                io.DynamicCombo.Input(
                    "method",
                    options=[io.DynamicCombo.Option(name, selector.inputs(io)) for name, selector in METHODS.items()],
                    tooltip="How blocks are chosen. "
                    + " ".join(f"{name}: {m.summary}." for name, m in METHODS.items()),
                ),
                io.Combo.Input("tail", options=list(TAILS), default="each query", optional=True,
                               tooltip="What becomes of the blocks that are not kept. each query: they stay in the "
                               "softmax as their mean (best); each block: the same, one logit for a whole query block "
                               "(cheaper); off: dropped."),
                io.Int.Input("first_dense_steps", default=1, min=0, max=1000, optional=True,
                             tooltip="Steps at the start that stay dense; they decide the layout. 1 of 20 steps is "
                             "typical, 0 for none."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="Share of the model's noise range after which sparse attention begins; 0 is "
                               "pure noise."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="Share of the model's noise range after which attention is dense again; 1 is "
                               "the finished picture."),
                io.String.Input("dense_layers", default="0", optional=True, advanced=True,
                                tooltip="Layers that stay dense: numbers and ranges, negative ones from the end, e.g. "
                                "0-1, -1. The first is fragile in most models."),
                io.Int.Input("min_tokens", default=8192, min=0, max=1_000_000, step=64, optional=True, advanced=True,
                             tooltip="Attention with fewer tokens stays dense, where it is faster. Wan 480p x 81 "
                             "frames has 32,760 tokens; 0 for tiny models."),
                io.Combo.Input("block_order", options=list(ORDERS), default="tile", optional=True, advanced=True,
                               tooltip="Which tokens share a block. tile: a square of one frame; cube: a box over "
                               "neighbouring frames; raster: a run of a row."),
                io.Int.Input("block_side", default=8, min=2, max=16, optional=True, advanced=True,
                             tooltip="Tokens along a block's side: 8 gives blocks of 64 in a tile; 4 suits cubes (64) "
                             "and small clips."),
            ],
            outputs=[io.Model.Output(tooltip="The same model with sparse attention. Goes to the sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, method=None, dense_layers="0", start_percent=0.0, end_percent=1.0):
        """`method` is here because ComfyUI always passes a DynamicCombo; its own check of that input is what counts."""
        try:
            parse_layers(dense_layers)
            StepWindow(start_percent, end_percent)
        except ValueError as error:
            return f"Sparse Video Attention: {error}"
        return True

    @classmethod
    def execute(cls, model, method, tail="each query", first_dense_steps=1, start_percent=0.0, end_percent=1.0,
                dense_layers="0", min_tokens=8192, block_order="tile", block_side=8) -> io.NodeOutput:  # fmt: skip
        settings = dict(method)
        selector = METHODS[settings.pop("method")](**settings)
        when = When(
            StepWindow(start_percent, end_percent),
            StepWindow(first_dense_steps, None, "steps"),
            parse_layers(dense_layers),
            min_tokens,
        )
        sparse = SparseAttention(selector, when, Blocks(block_order, block_side), TAILS[tail])
        return io.NodeOutput(
            host.attach_attention(model, Card("sparse", "sparse"), sparse, getattr(cls.hidden, "unique_id", None))
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
        )

    @classmethod
    def execute(cls, model, after=None) -> io.NodeOutput:
        report = host.report_of(model) or "No run of this model has ended yet. Connect the sampler's output to 'after'."
        return io.NodeOutput(report, ui=ui.PreviewText(report))
