"""Sources that need no download: scenes of Puppet World, and the text encoder of the tiny checkpoints."""

from __future__ import annotations

from fractions import Fraction

from comfy_api.latest import InputImpl, Types, io

from ..models import host
from ..models.puppet import direct, views
from ..models.puppet.world import pose_scene
from .sockets import WORLD
from .ticking import ticking


class PuppetScene(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialPuppetScene",
            display_name="Puppet Scene",
            category="interspatial/sources",
            description="A procedural scene of walking, waving, jumping puppets, with everything about it known "
            "exactly: masks, parts, depth, optical flow, joints, camera, caption and sound. For trying graphs without "
            "a download, and for checking methods against the truth.",
            search_aliases=["puppet world", "synthetic video", "test video", "ground truth", "procedural", "pose",
                            "depth", "optical flow"],
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=True,
                             tooltip="Draws everything that is left open below. The same seed gives the same scene on "
                             "any machine."),
                io.Combo.Input("action", options=list(direct.ACTIONS), default="any",
                               tooltip="What the puppets do. walk left and walk right are seen from the camera; any: "
                               "drawn by the seed, for each puppet."),
                io.Int.Input("length", default=33, min=1, max=1025, step=4,
                             tooltip="Frames: 4 n + 1 for Wan and HunyuanVideo, 8 n + 1 for LTX. 33 is two seconds at "
                             "16 fps."),
                io.Int.Input("puppets", default=0, min=0, max=3, optional=True,
                             tooltip="Number of puppets, 1 to 3; 0: drawn by the seed."),
                io.Combo.Input("shirt", options=list(direct.SHIRTS), default="any", optional=True,
                               tooltip="Colour of all shirts; any: drawn for each puppet."),
                io.Combo.Input("ground", options=list(direct.GROUNDS), default="any", optional=True,
                               tooltip="floor: checkered, under a sky; plate: a plain grey wall, for compositing."),
                io.Combo.Input("camera", options=list(direct.CAMERAS), default="hold", optional=True,
                               tooltip="hold: stands still; orbit: 15 to 40 degrees a second around the puppets; "
                               "dolly: towards them; pan: turns; any: drawn by the seed."),
                io.Int.Input("balls", default=0, min=0, max=4, optional=True, advanced=True,
                             tooltip="Bouncing balls; each impact is heard in the sound."),
                io.Int.Input("width", default=128, min=32, max=2048, step=16, optional=True, advanced=True,
                             tooltip="Pixels. The tiny checkpoints were trained at 128."),
                io.Int.Input("height", default=128, min=32, max=2048, step=16, optional=True, advanced=True,
                             tooltip="Pixels. The tiny checkpoints were trained at 128."),
                io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=0.5, optional=True, advanced=True,
                               tooltip="Frames per second; 16 as Wan, 24 as most others."),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The clip with its sound."),
                io.Image.Output(display_name="images", tooltip="The frames."),
                io.Mask.Output(display_name="mask", tooltip="Share of each pixel that shows a puppet, anti-aliased."),
                io.Image.Output(display_name="depth", tooltip="Depth as grey: white is near, black is far or nothing."),
                io.Image.Output(display_name="flow",
                                tooltip="Optical flow to the next frame: hue is direction, strength is speed. The last "
                                "frame repeats."),
                io.Image.Output(display_name="parts", tooltip="Body parts, one colour each."),
                io.Audio.Output(display_name="audio", tooltip="The sound of the balls; silence without any."),
                io.String.Output(display_name="caption",
                                 tooltip="The sentence that describes the scene, in the words the tiny text encoder "
                                 "knows."),
                WORLD.Output(display_name="world",
                             tooltip="Everything else, exact: joints, surface points, camera matrices, alpha of each "
                             "puppet."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, seed, action, length, puppets=0, shirt="any", ground="any", camera="hold", balls=0,
                width=128, height=128, fps=16.0) -> io.NodeOutput:  # fmt: skip
        spec = direct.directed_scene(seed, action, puppets, shirt, ground, camera, balls)
        world = pose_scene(spec, length, height, width, fps, ticking(length))
        audio = views.audio(world)
        rate = Fraction(fps).limit_denominator(1001)
        components = Types.VideoComponents(images=world.rgb, audio=audio, frame_rate=rate)
        return io.NodeOutput(
            InputImpl.VideoFromComponents(components), world.rgb, views.mask(world), views.depth(world),
            views.flow(world), views.parts(world), audio, spec.caption(), world,
        )  # fmt: skip


class LoadTinyTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadTinyTextEncoder",
            display_name="Load Tiny Text Encoder",
            category="interspatial/sources",
            description="Loads the small UMT5 text encoder of the tiny checkpoints. It knows the words of Puppet "
            "World: one to three puppets, the colour of their shirts, what they do and where.",
            search_aliases=["load clip", "umt5", "text encoder", "tiny"],
            inputs=[io.Combo.Input("text_encoder", options=host.text_encoder_files(),
                                   tooltip="A file in models/text_encoders, or the one that ships with the pack.")],
            outputs=[io.Clip.Output(tooltip="Goes to CLIP Text Encode.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, text_encoder) -> io.NodeOutput:
        return io.NodeOutput(host.load_text_encoder(text_encoder))
