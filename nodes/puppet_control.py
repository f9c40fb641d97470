"""Scenes of Puppet World for body and camera control, and what a model is told of them beside bodies and cameras."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.control.from_world import body_of_world, camera_of_world, seen_by
from ..models.puppet.control_scenes import HELD_OUT, KINDS, control_scene, reference_scene
from ..models.puppet.subset import empty
from ..models.puppet.world import pose_scene
from .sockets import BODY, CAMERA, WORLD
from .ticking import ticking


class PuppetControlScene(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialPuppetControlScene",
            display_name="Puppet Control Scene",
            category="interspatial/sources",
            description="One or two puppets near the camera, in suits of six colours that tell left from right and "
            "person from person: the scenes that interspatial models are trained and judged on.",
            search_aliases=["puppet world", "crossing", "occlusion", "orbit", "test scene", "suit", "ground truth"],
            inputs=[
                io.Combo.Input("kind", options=list(KINDS), default="cross",
                               tooltip="single: one puppet in any motion; cross: two who pass before each other; "
                               "orbit: one or two with a camera that goes round them."),
                io.Int.Input("seed", default=0, min=0, max=HELD_OUT - 1, control_after_generate=True,
                             tooltip="Which scene of that kind. None of them was used to train the tiny models."),
                io.Int.Input("length", default=17, min=1, max=1025, step=4,
                             tooltip="Frames, 4 n + 1. The tiny models were trained at 17."),
                io.Boolean.Input("unseen_camera", default=False, optional=True,
                                 tooltip="The camera stands at 2.2 to 2.8 metres, where no training camera stood; else "
                                 "at 1.0 to 1.6."),
                io.Int.Input("size", default=128, min=32, max=1024, step=16, optional=True, advanced=True,
                             tooltip="Pixels, both sides. The tiny models were trained at 128."),
                io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=0.5, optional=True, advanced=True,
                               tooltip="Frames per second."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames."),
                WORLD.Output(display_name="world", tooltip="The truth. Goes to Puppet Body, Puppet Reference and Pose "
                             "Following Score."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind, seed, length, unseen_camera=False, size=128, fps=16.0) -> io.NodeOutput:
        world = pose_scene(control_scene(kind, HELD_OUT + seed, unseen_camera), length, size, size, fps,
                           ticking(length))  # fmt: skip
        return io.NodeOutput(world.rgb, world)


class PuppetReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialPuppetReference",
            display_name="Puppet Reference",
            category="interspatial/sources",
            description="What shows a model who the people of a Puppet World are and where: a picture of them side by "
            "side, with their bodies and camera in it, and the clip's place without anybody.",
            search_aliases=["reference image", "identity", "background plate", "clean plate"],
            inputs=[
                WORLD.Input("world", tooltip="From Puppet Control Scene, Puppet Scene or Puppet Body."),
                io.Int.Input("size", default=256, min=32, max=2048, step=16, optional=True,
                             tooltip="Pixels of the reference picture, both sides. 256 for the tiny model: a cell of "
                             "its latent then shows one limb."),
                io.Int.Input("points", default=256, min=24, max=4096, optional=True, advanced=True,
                             tooltip="Points a person, as many as the clip's body has."),
                CAMERA.Input("camera", optional=True,
                             tooltip="Sees the clip instead of the world's own camera, for example from Camera Path; "
                             "as long as the world."),
            ],
            outputs=[
                io.Image.Output(display_name="reference", tooltip="The people, one picture. Encode it for the model."),
                BODY.Output(display_name="reference_body", tooltip="Where they stand in it."),
                CAMERA.Output(display_name="reference_camera", tooltip="The camera that sees them."),
                io.Image.Output(display_name="background", tooltip="The clip's place without the people, frame by "
                                "frame."),
                WORLD.Output(display_name="world", tooltip="The world as that camera sees it, the truth for Pose "
                             "Following Score."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, world, size=256, points=256, camera=None) -> io.NodeOutput:
        shown = pose_scene(reference_scene(world.spec), 1, size, size, 1.0)
        try:
            body = body_of_world(shown, points)
            world = world if camera is None else seen_by(world, camera)
        except ValueError as error:
            raise ValueError(f"Puppet Reference: {error}") from error
        return io.NodeOutput(shown.rgb, body, camera_of_world(shown), empty(world).rgb, world)
