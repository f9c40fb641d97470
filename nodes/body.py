"""Body from File, Body from Pose Data and Body Preview: people as points in 3D, and what a camera sees of them."""

from __future__ import annotations

import os

from comfy_api.latest import io

from ..models import host
from ..models.control.body_file import SUFFIXES, read_body
from ..models.control.body_maps import KINDS, body_map
from ..models.control.joint_orders import ORDERS
from ..models.control.pose_data import SKINS, read_pose_data
from ..models.control.world_frame import AXES, UNITS
from ..models.host.input_files import BODIES, input_files, input_path
from .sockets import BODY, CAMERA
from .ticking import ticking

POSE_DATA = io.Custom("MHR_POSE_DATA")  # ComfyUI's own, in versions after 0.30.0
FITS = {"as it is": None, "stretch": "stretch", "trim": "trim"}


class BodyFromFile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialBodyFromFile",
            display_name="Body from File",
            category="interspatial/sources",
            description="Reads people that move: points, mesh vertices (SMPL and SMPL-X too) or joints over time, from "
            "npz and safetensors files. Brings them to metres with y up, and to the length of a clip.",
            search_aliases=["smpl", "smplx", "motion capture", "mocap", "npz", "skeleton", "joints", "body track"],
            inputs=[
                io.Combo.Input("body_file", options=[*BODIES.names(), *input_files(SUFFIXES)],
                               tooltip="A file in models/bodies or in the input folder: npz or safetensors. One "
                               "ships with the pack."),
                io.String.Input("path", default="", optional=True,
                                tooltip="A file elsewhere, in full, in place of body_file."),
                *fit_inputs(),
                io.Combo.Input("up", options=list(AXES), default="auto", optional=True, advanced=True,
                               tooltip="Which way is up in the file. y down: camera axes of OpenCV; z up: AMASS and "
                               "Blender; auto: from hips to head."),
                io.Combo.Input("unit", options=list(UNITS), default="auto", optional=True, advanced=True,
                               tooltip="Unit of the file. auto: by the size of the body."),
                io.Combo.Input("joint_order", options=list(ORDERS), default="auto", optional=True, advanced=True,
                               tooltip="Order of the joints. auto: by their number; 17 joints need a choice."),
                io.Float.Input("file_fps", default=0.0, min=0.0, max=1000.0, step=0.001, optional=True, advanced=True,
                               tooltip="Frames per second of the file. 0: what the file says, else 30."),
            ],
            outputs=[
                BODY.Output(display_name="body", tooltip="The people. Goes to Body Preview and to the control nodes."),
                CAMERA.Output(display_name="camera", tooltip="The camera of the file; nothing where it has none, and "
                              "Camera Path then makes one."),
                io.String.Output(display_name="report", tooltip="What was read."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, body_file, path="", **others):
        """A file that was written anew is read anew."""
        try:
            about = os.stat(input_path(path or body_file))
        except OSError:
            return "missing"
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, body_file, path="", points=512, length=0, fps=0.0, fit="as it is", up="auto", unit="auto",
                joint_order="auto", file_fps=0.0) -> io.NodeOutput:  # fmt: skip
        try:
            found = read_body(input_path(path or body_file), points, unit, up, joint_order, file_fps)
        except (ValueError, OSError) as error:
            raise ValueError(f"Body from File: {error}") from error
        track, camera, line = fitted(found, length, fps, fit)
        return io.NodeOutput(track, camera, told(cls, [*found.lines, line]))


class BodyFromPoseData(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialBodyFromPoseData",
            display_name="Body from Pose Data",
            category="interspatial/sources",
            description="Takes the people that ComfyUI's own SAM 3D Body nodes have found in a video, as points on "
            "their skin, with the camera that saw them.",
            search_aliases=["sam 3d body", "sam3d", "mhr", "pose estimation", "body track", "video to pose"],
            inputs=[
                POSE_DATA.Input("pose_data", tooltip="mhr_pose_data of ComfyUI's SAM 3D Body nodes, smoothed or not."),
                io.Float.Input("source_fps", default=16.0, min=0.1, max=1000.0, step=0.001,
                               tooltip="Frames per second of the video that was tracked; the data does not say."),
                *fit_inputs(),
                io.Combo.Input("skin", options=list(SKINS), default="mesh", optional=True, advanced=True,
                               tooltip="mesh: points are vertices of the found bodies; capsules: a skin of the same "
                               "anatomy as Puppet World's, around the found joints."),
            ],
            outputs=[
                BODY.Output(display_name="body", tooltip="The people, metres, floor at their lowest point."),
                CAMERA.Output(display_name="camera", tooltip="The camera of the tracker, which stands still."),
                io.String.Output(display_name="report", tooltip="Who was found in how many frames."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, pose_data, source_fps, points=512, length=0, fps=0.0, fit="as it is", skin="mesh"):
        try:
            found = read_pose_data(pose_data, source_fps, points, skin)
        except ValueError as error:
            raise ValueError(f"Body from Pose Data: {error}") from error
        track, camera, line = fitted(found, length, fps, fit)
        return io.NodeOutput(track, camera, told(cls, [*found.lines, line]))


class BodyPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialBodyPreview",
            display_name="Body Preview",
            category="interspatial/control",
            description="Draws what a camera sees of bodies: points over images, a skeleton, depth, normals, parts or "
            "people. Shows whether body, camera and video agree, and feeds VACE, Fun Control and pose video models.",
            search_aliases=["openpose", "dwpose", "skeleton video", "depth map", "normal map", "pose video", "vace",
                            "scail", "control video"],
            inputs=[
                BODY.Input("body", tooltip="The people."),
                CAMERA.Input("camera", tooltip="As long as the body, or one frame that is held."),
                io.Combo.Input("kind", options=list(KINDS), default="overlay",
                               tooltip="; ".join(f"{name}: {what}" for name, what in KINDS.items()) + "."),
                io.Image.Input("images", optional=True,
                               tooltip="Under overlay and skeleton: as many as the body has frames, or one. They give "
                               "the size when width or height is 0."),
                io.Int.Input("width", default=0, min=0, max=8192, step=8, optional=True, advanced=True,
                             tooltip="Pixels. 0: of the images, else of the camera."),
                io.Int.Input("height", default=0, min=0, max=8192, step=8, optional=True, advanced=True,
                             tooltip="Pixels. 0: of the images, else of the camera."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="A picture a frame of the body.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, body, camera, kind="overlay", images=None, width=0, height=0) -> io.NodeOutput:
        found = (camera.height, camera.width) if images is None else images.shape[1:3]
        size = (height, width) if height and width else tuple(int(n) for n in found)
        try:
            return io.NodeOutput(body_map(kind, body, camera, *size, images, ticking(body.frames)))
        except ValueError as error:
            raise ValueError(f"Body Preview: {error}") from error


def fit_inputs() -> list:
    """How many points, and the length and rate of the clip."""
    return [
        io.Int.Input("points", default=512, min=24, max=8192, optional=True,
                     tooltip="Points a person: 512 lie about 6 cm apart on an adult."),
        io.Int.Input("length", default=0, min=0, max=8192, optional=True,
                     tooltip="Frames of the clip to be made, with fit. 0: as many as the source has at the new rate."),
        io.Float.Input("fps", default=0.0, min=0.0, max=1000.0, step=0.001, optional=True,
                       tooltip="Frames per second of the clip to be made, with fit; 16 for Wan, 24 for most others. 0: "
                       "of the source."),
        io.Combo.Input("fit", options=list(FITS), default="as it is", optional=True,
                       tooltip="stretch: the whole motion over the clip; trim: at its own speed, cut, or resting in "
                       "its last frame; as it is: length and fps count for nothing."),
    ]  # fmt: skip


def fitted(found, length: int, fps: float, fit: str):
    """Body and camera at the length and rate of a clip, and a line that says so."""
    track, camera, how = found.track, found.camera, FITS[fit]
    if how is None or not (length or fps):
        return track, camera, f"{track.frames} frames, as in the source"
    rate = fps or track.fps
    frames = length or int((track.frames - 1) / track.fps * rate + 1e-6) + 1
    camera = None if camera is None else camera.fitted(frames, track.fps / rate, how)
    return track.fitted(frames, rate, how), camera, f"{fit}: {frames} frames at {rate:g} fps"


def told(node, lines: list[str]) -> str:
    """The report, shown on the node too."""
    report = "\n".join(lines)
    host.show_text(report, getattr(node.hidden, "unique_id", None))
    return report
