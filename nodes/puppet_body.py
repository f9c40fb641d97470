"""Puppet Body: the bodies and the camera of a Puppet World as control, with edits."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.control.from_world import body_of_world, camera_of_world
from ..models.puppet import edit
from .sockets import BODY, CAMERA, WORLD
from .ticking import ticking


class PuppetBody(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialPuppetBody",
            display_name="Puppet Body",
            category="interspatial/control",
            description="Gives the bodies and the camera of a Puppet World to body and camera control, and can change "
            "what one or all puppets do, where they stand and which way they face. The changed world comes with it, "
            "as the truth to score a clip against.",
            search_aliases=["body track", "pose control", "edit motion", "retarget", "camera", "surface points"],
            inputs=[
                WORLD.Input("world", tooltip="From Puppet Scene."),
                io.Combo.Input("person", options=list(edit.PEOPLE), default="all", optional=True,
                               tooltip="Whom the changes below are for; people are counted as in the caption."),
                io.Combo.Input("motion", options=list(edit.MOTIONS_OR_KEPT), default="as it is", optional=True,
                               tooltip="What the person does instead. Place, facing and clothes stay."),
                io.Float.Input("speed", default=1.0, min=0.0, max=4.0, step=0.05, optional=True,
                               tooltip="Times the speed of the motion: 2 is twice as fast, 0 stands frozen."),
                io.Float.Input("offset_x", default=0.0, min=-10.0, max=10.0, step=0.05, optional=True,
                               tooltip="Metres to the right, as seen by a camera at the front."),
                io.Float.Input("offset_z", default=0.0, min=-10.0, max=10.0, step=0.05, optional=True,
                               tooltip="Metres towards a camera at the front; below 0: away from it."),
                io.Float.Input("yaw", default=0.0, min=-180.0, max=180.0, step=5.0, optional=True,
                               tooltip="Degrees that the person turns to the right as seen by a camera at the front; a "
                               "walk goes the new way."),
                io.Boolean.Input("only_this_person", default=False, optional=True, advanced=True,
                                 tooltip="Leaves everybody else out of the body and of the world."),
                io.Int.Input("points", default=256, min=24, max=4096, optional=True, advanced=True,
                             tooltip="Points on the skin of each person. The adapter says how many it was trained "
                             "with; 256 is usual."),
            ],
            outputs=[
                BODY.Output(display_name="body", tooltip="Points, normals and joints of everybody, in metres."),
                CAMERA.Output(display_name="camera", tooltip="The camera of the world, one per frame."),
                WORLD.Output(display_name="world", tooltip="The world with the changes; the same one without any. Goes "
                             "to Pose Following Score."),
                io.Image.Output(display_name="images", tooltip="The world with the changes, rendered."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, world, person="all", motion="as it is", speed=1.0, offset_x=0.0, offset_z=0.0, yaw=0.0,
                only_this_person=False, points=256) -> io.NodeOutput:  # fmt: skip
        change = edit.Change(person, motion, speed, (offset_x, offset_z), yaw, only_this_person)
        try:
            changed = edit.changed(world, change, ticking(world.frames))
            body = body_of_world(changed, points)
        except ValueError as error:
            raise ValueError(f"Puppet Body: {error}") from error
        return io.NodeOutput(body, camera_of_world(changed), changed, changed.rgb)
