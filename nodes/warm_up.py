"""Warm Up Kernels: everything that a run would compile in its first step, compiled before it."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.warm_up import warm_up_tasks
from ..models.warm_up_report import perform
from .ticking import ticking


class WarmUpKernels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialWarmUpKernels",
            display_name="Warm Up Kernels",
            category="interspatial/speed",
            description="Compiles the GPU kernels that the patches on a model will use and picks their tiles, so that "
            "the first step of a run is as fast as the others. What was compiled and measured is kept on disk for "
            "later sessions.",
            search_aliases=["warm up", "compile", "triton", "first step slow", "cold start", "tune", "precompile"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model as the sampler gets it: behind Sparse Video Attention, Step "
                               "Cache and Load Quantized Model, whose kernels are looked for."),
                io.Latent.Input("latent_image", optional=True, tooltip="The latent that will be sampled. Needed for "
                                "models that make sound with the picture; for others only very small frames "
                                "compile differently."),
            ],
            outputs=[
                io.Model.Output(tooltip="The same model, unchanged. Wired to the sampler, it warms up before the run."),
                io.String.Output(display_name="report", tooltip="Seconds of each kernel, and the tile that it will "
                                 "use: measured earlier on this card, from the table that ships, or timed now."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, latent_image=None) -> io.NodeOutput:
        tasks = warm_up_tasks(model, latent_image)
        report = perform(tasks, model.load_device, ticking(len(tasks)))
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(model, report, ui=ui.PreviewText(report))
