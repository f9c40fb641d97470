"""Load Dynamic Router: compute by noise level and content, with routers that were trained for a model."""

from __future__ import annotations

import os

from comfy_api.latest import io

from ..models import host
from ..models.dynamic.dynamic_model import DynamicModel
from ..models.dynamic.router_file import read_router
from ..models.families import bare
from ..models.host.layers import with_weights
from ..models.host.router_files import router_files, router_path
from ..models.report import Card


class LoadDynamicRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadDynamicRouter",
            display_name="Load Dynamic Router",
            category="interspatial/speed",
            description="Loads routers that were trained for a model (DyDiT, DyFLUX): in each step they leave out "
            "attention heads, parts of the MLPs, and tokens of the MLPs.",
            search_aliases=["dydit", "dyflux", "dynamic compute", "router", "faster", "skip tokens"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the routers were trained for, with or without LoRAs."),
                io.Combo.Input("router_file", options=router_files(),
                               tooltip="A file in models/dynamic_routers: safetensors."),
                io.Float.Input("token_share", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                               tooltip="Share of the tokens that the MLPs compute, the same in every step and block; "
                               "1 for all. 0: the shares of the file; files that say none get all tokens for the first "
                               "20 % of the noise range, then 60 %, and 80 % for the last 10 %."),
            ],
            outputs=[io.Model.Output(tooltip="The same model with its routers. Goes to the sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, router_file, **others):
        """A file that was written anew is read anew."""
        about = os.stat(router_path(router_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, model, router_file, token_share=0.0) -> io.NodeOutput:
        file = read_router(router_path(router_file))
        dynamic = DynamicModel(file, token_share or None)
        family = host.family_of_model(model)
        network = bare(model.get_model_object("diffusion_model"))
        if reason := dynamic.why_not_model(network, family and family.name):
            raise ValueError(
                f"Load Dynamic Router: {router_file} does not fit this {type(network).__name__}: {reason}. Load the "
                "model that the routers were trained for, or leave this node out."
            )
        try:
            model = with_weights(model, file.changes)
        except ValueError as error:
            raise ValueError(f"Load Dynamic Router: {router_file} does not fit this model: {error}.") from error
        node_id = getattr(cls.hidden, "unique_id", None)
        return io.NodeOutput(host.attach_step(model, Card("dynamic router", "dynamic"), dynamic, node_id))
