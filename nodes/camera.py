"""Camera Path and Camera Path to Wan: cameras by name, around a body, and in ComfyUI's own forms."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.control.camera_exchange import of_lines, of_load3d, to_load3d, wan_embedding
from ..models.control.camera_moves import (
    EASES,
    FOV,
    MOVES,
    aim_of,
    default_stand,
    lengthened,
    moved,
    stand_before,
)
from .sockets import BODY, CAMERA

FRAMES = 33  # of a camera for which nothing says how long it is: two seconds of Wan
SIZE = (480, 832)


class CameraPath(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialCameraPath",
            display_name="Camera Path",
            category="interspatial/sources",
            description="A camera that holds, orbits, moves, turns or zooms. It starts from a given camera, or where "
            "it sees the whole body.",
            search_aliases=["camera move", "orbit", "dolly", "pan", "tilt", "zoom", "crane", "camera trajectory",
                            "plucker"],
            inputs=[
                io.Combo.Input("move", options=list(MOVES), default="hold",
                               tooltip="orbit: around the body; dolly: forward; pan: turns to the right; tilt: turns "
                               "up; truck: to the right; crane: up; zoom: longer lens."),
                io.Float.Input("amount", default=0.0, min=-3600.0, max=3600.0, step=0.01,
                               tooltip="Over the whole clip: degrees for orbit, pan and tilt (45), metres for dolly, "
                               "truck and crane (1), times the focal length for zoom (1.5). Negative: the other way."),
                BODY.Input("body", optional=True,
                           tooltip="What the camera looks at; it gives the length too."),
                CAMERA.Input("camera", optional=True,
                             tooltip="A camera to start from; a move of its own goes on below the new one."),
                io.Load3DCamera.Input("camera_info", optional=True,
                                      tooltip="A camera of ComfyUI's 3D nodes to start from."),
                io.Combo.Input("ease", options=list(EASES), default="linear", optional=True,
                               tooltip="linear: even speed; ease in and out: starts and ends at rest."),
                io.Int.Input("length", default=0, min=0, max=8192, optional=True,
                             tooltip=f"Frames. 0: as many as the body or the camera has, else {FRAMES}."),
                io.Int.Input("width", default=0, min=0, max=8192, step=8, optional=True,
                             tooltip=f"Pixels of the picture. 0: of the given camera, else {SIZE[1]}."),
                io.Int.Input("height", default=0, min=0, max=8192, step=8, optional=True,
                             tooltip=f"Pixels of the picture. 0: of the given camera, else {SIZE[0]}."),
                *stand_inputs(),
            ],
            outputs=[
                CAMERA.Output(display_name="camera", tooltip="Goes to Body Preview and to the control nodes."),
                io.Load3DCamera.Output(display_name="camera_info",
                                       tooltip="Its first frame, for ComfyUI's 3D nodes."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, move, amount, body=None, camera=None, camera_info=None, ease="linear", length=0, width=0,
                height=0, **stand) -> io.NodeOutput:  # fmt: skip
        frames = length or getattr(body, "frames", 0) or getattr(camera, "frames", 0) or FRAMES
        size = height or getattr(camera, "height", SIZE[0]), width or getattr(camera, "width", SIZE[1])
        sweep = amount if move == "orbit" else 0.0
        try:
            start, aim = started(body, camera, camera_info, frames, size, sweep, **stand)
            path = moved(start, move, amount, aim, ease)
        except ValueError as error:
            raise ValueError(f"Camera Path: {str(error).removeprefix('Camera: ')}") from error
        return io.NodeOutput(path, to_load3d(path, float((aim - path.centre[0]).norm())))


class CameraPathToWan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialCameraPathToWan",
            display_name="Camera Path to Wan",
            category="interspatial/sources",
            description="Turns a camera into the camera embedding of Wan's camera models, as ComfyUI's own node makes "
            "it from its presets.",
            search_aliases=["wan camera embedding", "plucker", "camera control", "fun camera"],
            inputs=[CAMERA.Input("camera", tooltip="4 n + 1 frames.")],
            outputs=[
                io.WanCameraEmbedding.Output(display_name="camera_embedding",
                                             tooltip="Goes to ComfyUI's Wan camera nodes."),
                io.Int.Output(display_name="width", tooltip="Of the camera, pixels."),
                io.Int.Output(display_name="height", tooltip="Of the camera, pixels."),
                io.Int.Output(display_name="length", tooltip="Of the camera, frames."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, camera) -> io.NodeOutput:
        try:
            embedding = wan_embedding(camera, camera.height, camera.width)
        except ValueError as error:
            raise ValueError(f"Camera Path to Wan: {error}") from error
        return io.NodeOutput(embedding, camera.width, camera.height, camera.frames)


def stand_inputs() -> list:
    """Where the camera starts when none is given."""
    return [
        io.Float.Input("start_angle", default=0.0, min=-360.0, max=360.0, step=1.0, optional=True, advanced=True,
                       tooltip="Degrees around the body; 0 is on the +z side, 90 on the +x side. Not used with a given "
                       "camera."),
        io.Float.Input("distance", default=0.0, min=0.0, max=1000.0, step=0.05, optional=True, advanced=True,
                       tooltip="Metres from the body. 0: as near as the whole body is seen. Not used with a given "
                       "camera."),
        io.Float.Input("camera_height", default=0.0, min=0.0, max=1000.0, step=0.05, optional=True, advanced=True,
                       tooltip="Metres over the floor. 0: level with the middle of the body. Not used with a given "
                       "camera."),
        io.Float.Input("fov", default=FOV, min=1.0, max=150.0, step=0.5, optional=True, advanced=True,
                       tooltip="Field of view from top to bottom, degrees. Not used with a given camera."),
        io.String.Input("pose_lines", default="", multiline=True, optional=True, advanced=True,
                        tooltip="Camera poses as text, a frame a line, to start from: time fx fy cx cy 0 0, and 12 "
                        "numbers of world to camera or 16 of camera to world."),
    ]  # fmt: skip


def started(body, camera, camera_info, frames, size, sweep, start_angle=0.0, distance=0.0, camera_height=0.0, fov=FOV,
            pose_lines=""):  # fmt: skip
    """The camera before the move, and what it goes around."""
    all_three = {"camera": camera, "camera_info": camera_info, "pose_lines": pose_lines}
    given = [name for name, one in all_three.items() if one]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given. Accepted: one camera to start from.")
    if camera_info:
        return of_load3d(camera_info, frames, *size)
    if given:
        path = camera.covering(*size) if camera is not None else of_lines(pose_lines, *size)
        return lengthened(path, frames), aim_of(path, body)
    where = {"angle": start_angle, "distance": distance or None, "fov": fov}
    if body is None:
        stand = default_stand(camera_height or None, **where)
    else:
        stand = stand_before(body, *size, above=camera_height or None, sweep=sweep, **where)
    return stand.path(frames, *size), stand.aim
