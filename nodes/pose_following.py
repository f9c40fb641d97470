"""Pose Following Score: whether a clip follows the bodies that it was given, from its pixels and the known truth."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.measure import pose_following, pose_picture
from .sockets import WORLD


class PoseFollowingScore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialPoseFollowingScore",
            display_name="Pose Following Score",
            category="interspatial/measure",
            description="Measures how well a clip follows the bodies of a Puppet World that it was made from: where "
            "each part of each puppet is, who covers whom, outline and jitter. It reads colours and needs no network.",
            search_aliases=["pose accuracy", "pose error", "control score", "occlusion", "silhouette", "evaluate",
                            "benchmark", "ground truth"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Frames of the clip to judge. A VIDEO becomes frames with Get Video "
                               "Components. Another size is scaled; of another length the first frames count."),
                WORLD.Input("world", tooltip="The truth: the world whose body and camera controlled the clip, from "
                            "Puppet Scene or Puppet Body."),
                io.Int.Input("token_size", default=16, min=1, max=256, optional=True,
                             tooltip="Pixels of the world's picture that a token of the model covers along a side: 16 "
                             "for Wan. The joint error is given in these."),
                io.Int.Input("frames_shown", default=3, min=1, max=8, optional=True, advanced=True,
                             tooltip="Number of frames side by side in the picture, the worst one first."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Truth and clip with the middle of each part marked, "
                                "and the errors over the frames."),
                io.String.Output(display_name="report", tooltip="The figures in words."),
                io.Float.Output(display_name="part_error", tooltip="Mean distance of the parts' middles from their "
                                "places, in pixels of the world. 0 is perfect; a missing part counts half the height."),
                io.Float.Output(display_name="part_recall", tooltip="Share of the puppets' pixels that show the right "
                                "part, 0 to 1."),
                io.Float.Output(display_name="silhouette_iou", tooltip="Overlap of the outlines, 0 to 1."),
                io.Float.Output(display_name="right_person", tooltip="Share of the pixels where one puppet covers "
                                "another that show the front one, 0 to 1. nan where nobody covers anybody."),
                io.Float.Output(display_name="joint_error", tooltip="Mean distance of the ends of arms and legs from "
                                "their places, in tokens. nan for puppets without suits."),
                io.Float.Output(display_name="jitter", tooltip="Trembling of the parts' middles, in pixels. nan for "
                                "fewer than three frames."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, world, token_size=16, frames_shown=3) -> io.NodeOutput:
        score = scored(images, world, token_size)
        report = "\n".join(score.lines())
        heading = f"Pose following, {len(score.judged)} frames of {world.width} x {world.height}"
        sheet = pose_picture.draw_following(images, world.rgb, score, heading, frames_shown).unsqueeze(0)
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(sheet, report, score.part_error, score.part_recall, score.silhouette_iou,
                             score.right_person, score.joint_error, score.jitter, ui=shown)  # fmt: skip


def scored(images, world, token_size: int) -> pose_following.PoseScore:
    """The score, with progress."""
    progress, done = host.progress_bar(pose_following.PARTS), iter(range(1, pose_following.PARTS + 1))

    def step() -> None:
        host.check_interrupt()
        progress(next(done))

    try:
        return pose_following.follow(images, world, token_size, step, lambda frames: host.check_interrupt())
    except ValueError as error:
        raise ValueError(f"Pose Following Score: {error}") from error
