"""Interspatial Viewer: which point of a body each token of the video looks at."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..models import host
from ..models.control.adapter_visit import chosen_layers
from ..models.control.interspatial import InterspatialControl
from ..models.host.one_evaluation import evaluate_once
from ..models.host.patches import with_method
from ..models.measure.interspatial_picture import draw_heard
from ..models.measure.looks_picture import frames_of
from ..models.measure.point_listening import NEAR, Heard, PointListener

NAME = "Interspatial Viewer"


class InterspatialViewer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialViewer",
            display_name=NAME,
            category="interspatial/measure",
            description="Evaluates a controlled model once and shows which point of the bodies each token of the video "
            "looks at most, coloured by body part, and how often that point is where the token is.",
            search_aliases=["interspatial attention", "isa4d", "attention map", "body control", "debug", "pose"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model with Body and Camera Control on it."),
                io.Conditioning.Input("positive", tooltip="The prompt of the render."),
                io.Latent.Input("latent_image", tooltip="A clip as a latent, rendered or encoded; noise is added. "
                                "An empty one of the right size shows less: there is nothing to recognise."),
                *viewer_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Points and tokens over the frames."),
                io.Float.Output(display_name="right",
                                tooltip=f"Share of the tokens on a body whose point is within {NEAR} tokens, 0 to 1."),
                io.String.Output(display_name="report", tooltip="The figures in words."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, latent_image, negative=None, images=None, vae=None, percent=0.5, layer=-1, seed=0,
        cfg=1.0,
    ) -> io.NodeOutput:  # fmt: skip
        patch = control_patch(model)
        listener = PointListener(block_of(patch.method, layer))
        watched = with_method(model, patch, replace(patch.method, listener=listener))
        seen = evaluate_once(watched, positive, negative, latent_image, percent, seed, cfg)
        if listener.heard is None:
            raise ValueError(
                f"{NAME}: the adapter did not run at {percent:g} of the noise range: {host.report_of(watched)}. Choose "
                "a percent at which it does, or change Body and Camera Control."
            )
        frames = frames_of(seen, vae) if images is None else images
        lines = described(listener.heard, listener.layer, percent)
        sheet = draw_heard(listener.heard, frames.cpu(), lines).unsqueeze(0)
        report = "\n".join([*lines, host.report_of(watched)])
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(sheet, listener.heard.judged().right, report, ui=shown)


def viewer_inputs() -> list:
    """Where one looks, and at what."""
    return [
        io.Conditioning.Input("negative", optional=True,
                              tooltip="The negative prompt. It matters only for the picture below the colours."),
        io.Image.Input("images", optional=True, tooltip="Frames to lay the colours over. Without them: what the model "
                       "sees in the noise."),
        io.Vae.Input("vae", optional=True, tooltip="Decodes what the model sees, where no images are given."),
        io.Float.Input("percent", default=0.5, min=0.0, max=0.99, step=0.01, optional=True,
                       tooltip="Noise level: 0 is pure noise, 1 the finished picture."),
        io.Int.Input("layer", default=-1, min=-64, max=63, optional=True,
                     tooltip="Which of the layers that the adapter adds in: 0 the first, -1 the last."),
        io.Int.Input("seed", default=0, min=0, max=2**53, control_after_generate=True, optional=True, advanced=True,
                     tooltip="Noise that is added to the latent."),
        io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, optional=True, advanced=True,
                       tooltip="Guidance of the picture below the colours, with a negative prompt; 1 for none."),
    ]  # fmt: skip


def control_patch(model):
    """The outermost control on a model. raises: ValueError without one"""
    for patch in host.patches_of(model):
        if isinstance(patch.method, InterspatialControl):
            return patch
    raise ValueError(f"{NAME}: this model has no Body and Camera Control on it. Connect the model output of that node.")


def block_of(control: InterspatialControl, layer: int) -> int:
    """Number of the host's block. raises: ValueError for a layer that the adapter has not"""
    layers = chosen_layers(control.adapter.config.layers, control.layers)
    if not -len(layers) <= layer < len(layers):
        raise ValueError(
            f"{NAME}: layer {layer}, and the adapter adds in {len(layers)}. Accepted: {-len(layers)} to "
            f"{len(layers) - 1}, counted over the blocks {', '.join(map(str, layers))}."
        )
    return layers[layer]


def described(heard: Heard, block: int, percent: float) -> list[str]:
    """The figures in words."""
    found = heard.judged()
    return [
        f"Block {block} at {percent:.0%} of the noise range: {found.right:.1%} of the {found.on_body} tokens on a body "
        f"listen most to a point within {NEAR:g} tokens of them; by chance it were {found.chance:.1%}. The loudest "
        f"point has {heard.share.mean():.1%} of a token's attention."
    ]
