"""This pack's own model: its loader, and the scene of bodies, camera, people and background that it is asked for."""

from __future__ import annotations

import os

import torch
from comfy_api.latest import io

from ..models import host
from ..models.control.clip_fit import FITS, Clip, Fit, brought
from ..models.control.projection import ndc
from ..models.control.scene import PIXELS, Background, Reference, Scene
from ..models.control.time_folding import latent_frames
from ..models.host.interspatial_model import SCENE, why_not_ours
from ..models.host.quant_loading import load_quantised_model
from ..models.host.quant_sources import model_files, model_path
from .sockets import BODY, CAMERA

LOADER, NAME = "Load Interspatial Model", "Body and Camera Scene"
CHANNELS, STRIDE = 16, 4  # of the latent, pixel frames a latent frame: those of Wan 2.1's VAE and of this pack's own


class InterspatialLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadModel",
            display_name=LOADER,
            category="interspatial/control",
            description="Loads a model made for bodies and cameras: it takes no text, but a scene of bodies, a camera, "
            "a picture of the people and a background.",
            search_aliases=["load diffusion model", "unet loader", "isa4d", "interspatial dit", "human video"],
            inputs=[
                io.Combo.Input("model_file", options=model_files(),
                               tooltip="A file in models/diffusion_models, quantised or not. interspatial_tiny ships "
                               "with the pack."),
            ],
            outputs=[io.Model.Output(tooltip="Goes to the sampler; its prompts come from Body and Camera Scene.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model_file):
        """A file that was written anew is read anew."""
        about = os.stat(model_path(model_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, model_file) -> io.NodeOutput:
        path = model_path(model_file)
        if reason := why_not_ours(path):
            raise ValueError(f"{LOADER}: {model_file} {reason}")
        try:
            return io.NodeOutput(load_quantised_model(path))
        except ValueError as error:
            raise ValueError(f"{LOADER}: {error}") from error


class InterspatialScene(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialScene",
            display_name=NAME,
            category="interspatial/control",
            description="What an interspatial model is asked to show: bodies in 3D, where they are seen from, who they "
            "are, and what is behind them. Its outputs take the place of the prompts.",
            search_aliases=["pose", "body", "camera control", "conditioning", "isa4d", "reference", "background"],
            inputs=[
                BODY.Input("body", tooltip="The people of the clip, points on their skin in metres."),
                CAMERA.Input("camera", optional=True,
                             tooltip="Where the clip is seen from. Without it: a camera that stands still in front and "
                             "sees everybody."),
                io.Int.Input("length", default=17, min=1, max=1025, step=4, optional=True,
                             tooltip="Frames, 4 n + 1. The tiny model was trained at 17."),
                *size_inputs(),
                *reference_inputs(),
                *background_inputs(),
                *fit_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The scene. Goes to the sampler."),
                io.Conditioning.Output(display_name="negative",
                                       tooltip="The same camera and background without anybody: cfg strengthens bodies "
                                       "and people, not the view."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of that length and size."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, body, camera=None, length=17, width=128, height=128, reference=None, reference_body=None,
        reference_camera=None, background=None, background_mask=None, fit="stretch", video_fps=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        clip = Clip(latent_frames(length, STRIDE), STRIDE, height, width, height, width)
        fitted, seen_from, notes = brought(body, camera, clip, Fit(fit, video_fps))
        view = (reference_body or body, reference_camera or (None if reference_body else camera))
        try:
            shown = None if reference is None else Reference(video_latent("reference", reference), *view)
            behind = background_of(background, background_mask)
            scene = Scene(seen_from, fitted, shown, behind)
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error
        usable = ndc(fitted.points, fitted.known, seen_from)[1]
        host.show_text(told(scene, notes, usable), getattr(cls.hidden, "unique_id", None))
        latent = torch.zeros(1, CHANNELS, clip.latents, height // PIXELS, width // PIXELS)
        return io.NodeOutput(prompt(scene), prompt(scene.unpeopled), {"samples": latent})


def size_inputs() -> list:
    return [
        io.Int.Input(name, default=128, min=32, max=8192, step=16, optional=True,
                     tooltip="Pixels. The tiny model was trained at 128 x 128. A camera of another shape is scaled to "
                     "cover the picture, and cropped.")
        for name in ("width", "height")
    ]  # fmt: skip


def reference_inputs() -> list:
    """A picture that shows who the bodies are."""
    return [
        io.Latent.Input("reference", optional=True,
                        tooltip="A picture of the people, encoded by the model's VAE. Each point of a body takes what "
                        "the picture shows there, and the clip its look."),
        BODY.Input("reference_body", optional=True,
                   tooltip="The people in that picture, in the same order; its first frame. Without it: the body's own "
                   "first frame."),
        CAMERA.Input("reference_camera", optional=True,
                     tooltip="The camera of that picture, its first frame. Without it: the clip's, or for a "
                     "reference_body one that stands in front."),
    ]  # fmt: skip


def background_inputs() -> list:
    """What is behind the people."""
    return [
        io.Latent.Input("background", optional=True,
                        tooltip="The place without the people, seen by the same camera: a video of the clip's length "
                        "and size, encoded by the model's VAE."),
        io.Mask.Input("background_mask", optional=True, advanced=True,
                      tooltip="White where the background is given, black where the model is to make it up; one frame "
                      "or as many as the clip. Without it: given everywhere."),
    ]  # fmt: skip


def fit_inputs() -> list:
    """What becomes of a body of another length than the clip."""
    return [
        io.Combo.Input("fit", options=list(FITS), default="stretch", optional=True, advanced=True,
                       tooltip="For bodies and cameras of another length than the clip. stretch: all of the motion "
                       "over the whole clip. trim: at its own speed; what is too short rests in its last frame."),
        io.Float.Input("video_fps", default=0.0, min=0.0, max=240.0, step=1.0, optional=True, advanced=True,
                       tooltip="Frames a second of the clip, for trim. 0: as many as the body has."),
    ]  # fmt: skip


def prompt(scene: Scene) -> list:
    """A CONDITIONING that carries a scene; its text is empty, for nodes that look at one."""
    return [[torch.zeros(1, 1, 1), {SCENE: scene}]]


def background_of(latent: dict | None, mask) -> Background | None:
    """raises: ValueError"""
    if latent is None and mask is not None:
        raise ValueError("a background_mask without a background. Connect a background, or leave the mask out.")
    return None if latent is None else Background(video_latent("background", latent), mask)


def video_latent(name: str, latent: dict) -> torch.Tensor:
    """The samples of a LATENT, those of a picture as a video of one frame. raises: ValueError"""
    samples = latent["samples"]
    if samples.is_nested or samples.ndim not in (4, 5):
        raise ValueError(f"the {name} is no latent of a picture or video. Encode one with the model's VAE.")
    return samples[:, :, None] if samples.ndim == 4 else samples


def told(scene: Scene, notes: dict[str, str], usable: torch.Tensor) -> str:
    """One line for the node. usable: [P, T, N] points in view"""
    people = scene.body.people
    said = [f"{people} {'person' if people == 1 else 'people'}, {scene.body.points.shape[2]} points each",
            f"{100 * usable.float().mean():.0f} % in view"]  # fmt: skip
    said += [f"{name}: {text}" for name, text in notes.items()]
    if not usable.any():
        said.append("nobody is in the picture: look at camera and body with Body Preview")
    return ", ".join(said)
