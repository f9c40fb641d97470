"""Bodies and cameras on a MODEL, through an interspatial adapter."""

from __future__ import annotations

import os

from comfy_api.latest import io

from ..models import host
from ..models.attention.when import parse_layers
from ..models.control.clip_fit import FITS, Fit, reference_features
from ..models.control.interspatial import UNCONDS, InterspatialControl
from ..models.families import bare
from ..models.host.adapter_files import FILES, LoadedAdapter, as_the_model_sees, beside, load_adapter
from ..models.report import Card
from ..models.schedule import StepWindow
from .sockets import ADAPTER, BODY, CAMERA

NAME = "Body and Camera Control"


class InterspatialLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadAdapter",
            display_name="Load Interspatial Adapter",
            category="interspatial/control",
            description="Loads an interspatial adapter: weights that let a video model look at bodies and cameras in "
            "3D. They are trained for one model.",
            search_aliases=["interspatial attention", "isa4d", "pose control", "body control", "adapter", "3d control"],
            inputs=[
                io.Combo.Input("adapter_file", options=FILES.names(),
                               tooltip="A file in models/interspatial_adapters: safetensors."),
            ],
            outputs=[ADAPTER.Output(display_name="adapter", tooltip="Goes to Body and Camera Control.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, adapter_file):
        """A file that was written anew is read anew."""
        about = os.stat(FILES.path(adapter_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, adapter_file) -> io.NodeOutput:
        try:
            return io.NodeOutput(load_adapter(FILES.path(adapter_file)))
        except ValueError as error:
            raise ValueError(f"Load Interspatial Adapter: {error}") from error


class InterspatialBodyControl(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialBodyControl",
            display_name=NAME,
            category="interspatial/control",
            description="Makes a video follow bodies and a camera in 3D: in every step the picture's tokens look at "
            "the points of the bodies as the camera sees them, with their depth.",
            search_aliases=["interspatial attention", "isa4d", "pose", "openpose", "body", "camera control", "smpl",
                            "3d control", "skeleton", "motion"],
            inputs=[
                io.Model.Input("model", tooltip="The video model that the adapter was trained for, with or without "
                               "other patches."),
                ADAPTER.Input("adapter", tooltip="From Load Interspatial Adapter."),
                BODY.Input("body", tooltip="Points on the bodies over time, in metres."),
                CAMERA.Input("camera", optional=True,
                             tooltip="Where the video is seen from. Without it: a camera that stands still in front "
                             "and sees everybody."),
                *effect_inputs(),
                *fit_inputs(),
                *reference_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The same model, controlled. Goes to the sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, layers="all", start_percent=0.0, end_percent=1.0):
        try:
            chosen(layers)
        except ValueError as error:
            return str(error)
        if start_percent > end_percent:
            return f"{NAME}: start_percent {start_percent} lies behind end_percent {end_percent}. Swap them."
        return True

    @classmethod
    def execute(
        cls, model, adapter, body, camera=None, strength=1.0, start_percent=0.0, end_percent=1.0, layers="all",
        negative="same", fit="stretch", video_fps=0.0, reference=None, reference_body=None, reference_camera=None,
    ) -> io.NodeOutput:  # fmt: skip
        view = (reference_body or body, reference_camera or (None if reference_body else camera))
        control = InterspatialControl(
            adapter, body, camera, strength, StepWindow(start_percent, end_percent), chosen(layers), negative,
            Fit(fit, video_fps), None if reference is None else features(model, adapter, body, reference, *view),
        )  # fmt: skip
        network, family = bare(model.get_model_object("diffusion_model")), host.family_of_model(model)
        if reason := control.why_not_model(network, family):
            raise ValueError(
                f"{NAME}: {reason}. Load the model that the adapter was trained for, or an adapter for this "
                f"{type(network).__name__}. The adapter is for {adapter.config.family}, layers "
                f"{', '.join(map(str, adapter.config.layers))}."
            )
        node_id = getattr(cls.hidden, "unique_id", None)
        card = Card("body and camera", "control")
        return io.NodeOutput(host.attach_step(beside(model, adapter), card, control, node_id))


def effect_inputs() -> list:
    """How strongly, when and where."""
    return [
        io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, optional=True,
                       tooltip="Of what the adapter adds. 0: nothing; 1: as trained; above 1.3 colours tend to "
                       "oversaturate."),
        io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="Where in the noise range the control begins: 0 is pure noise."),
        io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="Where it ends: 1 is the finished picture. Poses are settled early; 0.6 leaves details "
                       "to the model."),
        io.String.Input("layers", default="all", optional=True, advanced=True,
                        tooltip="Blocks of the model whose part is added: all, or some of the adapter's, for example "
                        "0-8; 12; 16."),
        io.Combo.Input("negative", options=list(UNCONDS), default="same", optional=True, advanced=True,
                       tooltip="same: both prompts are told of the bodies. drop: the positive one alone, so that cfg "
                       "strengthens the pose too."),
    ]  # fmt: skip


def fit_inputs() -> list:
    """What becomes of a body of another length than the video."""
    return [
        io.Combo.Input("fit", options=list(FITS), default="stretch", optional=True,
                       tooltip="For bodies and cameras of another length than the video. stretch: all of the motion "
                       "over all of the video. trim: at its own speed; what is too short rests in its last frame."),
        io.Float.Input("video_fps", default=0.0, min=0.0, max=240.0, step=1.0, optional=True, advanced=True,
                       tooltip="Frames a second of the video, for trim. 0: as many as the body has."),
    ]  # fmt: skip


def reference_inputs() -> list:
    """A picture that shows who the bodies are, for adapters that were trained with one."""
    return [
        io.Latent.Input("reference", optional=True,
                        tooltip="A picture of the people, encoded by the VAE of the model. Each point of a body takes "
                        "what the picture shows there."),
        BODY.Input("reference_body", optional=True,
                   tooltip="The bodies in that picture, its first frame. Without it: the body's own first frame."),
        CAMERA.Input("reference_camera", optional=True,
                     tooltip="The camera of that picture, its first frame. Without it: the video's, or for a "
                     "reference_body one that stands in front."),
    ]  # fmt: skip


def chosen(layers: str) -> tuple[int, ...] | None:
    """raises: ValueError for text that names no layers"""
    if layers.strip().lower() == "all":
        return None
    try:
        if found := parse_layers(layers):
            return found
    except ValueError:
        pass
    raise ValueError(f"{NAME}: layers {layers!r} are not understood. Accepted: all, or block numbers and ranges, for "
                     "example 0-8, 12.")  # fmt: skip


def features(model, adapter: LoadedAdapter, body, reference: dict, reference_body, reference_camera):
    """What the reference shows at each point.

    raises: ValueError for a reference that does not fit body or adapter
    """
    samples = reference["samples"]
    channels = adapter.config.identity
    if not channels:
        raise ValueError(f"{NAME}: this adapter was trained without a reference view. Leave reference out.")
    if samples.is_nested or samples.shape[1] != channels:
        raise ValueError(
            f"{NAME}: a reference latent of shape {list(samples.shape)}, accepted: one of {channels} channels. Encode "
            "the picture with the VAE of the model."
        )
    if reference_body.points.shape[0::2] != body.points.shape[0::2]:
        raise ValueError(
            f"{NAME}: {reference_body.people} people of {reference_body.points.shape[2]} points in the reference, and "
            f"{body.people} of {body.points.shape[2]} in the video. Take both from the same kind of source, with the "
            "same people in the same order."
        )
    stride = host.family_of_model(model).spatial_stride if host.family_of_model(model) else 8
    latent = as_the_model_sees(model, samples)[0]
    return reference_features(latent[:, 0] if latent.ndim == 4 else latent, reference_body, reference_camera, stride)
