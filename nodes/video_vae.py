"""The causal video VAE: load it, run clips of any length through it in bounded memory, and measure any video VAE."""

from __future__ import annotations

import os

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.vae_chunks import decode_video, encode_video, why_not_stream
from ..models.host.video_vae import load_video_vae, video_vae_files, video_vae_path
from ..models.measure.window_audit import audit, describe, draw_audit
from .ticking import ticking

CHUNK_TIP = ("Latent frames at a time, four frames each: 2 typical. More is a little faster and takes more memory; the "
             "result is the same. Core's Wan VAE has a chunk of its own.")  # fmt: skip


def chunk_input() -> io.Int.Input:
    return io.Int.Input("chunk", default=2, min=1, max=64, optional=True, advanced=True, tooltip=CHUNK_TIP)


def ratio(vae) -> int:
    """Frames that share a latent frame; 1 for VAEs of pictures."""
    return vae.temporal_compression_decode() or 1


def decoded_frames(vae, latents: int) -> int:
    """Frames that so many latent frames decode to."""
    formula = vae.upscale_ratio[0] if isinstance(vae.upscale_ratio, tuple) else None
    return formula(latents) if callable(formula) else latents


def length_note(given: int, decoded: int) -> str:
    """What a length means that does not fill the last latent frame; nothing for one that does."""
    if decoded > given:
        return f"the last latent frame was filled by repeating the last frame: trim {decoded} frames to {given}"
    if decoded < given:
        return f"this VAE takes the first {decoded} of {given} frames"
    return ""


def plain_latent(latent):
    """[B, C, L, h, w] of a LATENT; of video with sound, the video. raises: ValueError for a picture's latent"""
    samples = latent["samples"]
    samples = samples.unbind()[0] if samples.is_nested else samples
    if samples.ndim != 5:
        raise ValueError(f"Decode Video (Streaming): the latent has shape {list(samples.shape)}, accepted: "
                         "[batch, channels, frames, rows, columns] of a video VAE. Decode pictures with VAE Decode.")
    return samples


def check_video_vae(vae, who: str) -> None:
    """raises: ValueError for a VAE that is not one of videos"""
    if getattr(vae, "latent_dim", 0) != 3 or vae.first_stage_model is None:
        raise ValueError(f"{who}: this VAE is not one for video. Accepted: a VAE whose latents have frames, from Load "
                         "Interspatial VAE or Load VAE.")  # fmt: skip


class LoadVideoVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadVideoVAE",
            display_name="Load Interspatial VAE",
            category="interspatial/sources",
            description="Loads a causal video VAE of Interspatial: 8x in space, 4x in time, 16 channels, pictures and "
            "clips of any length in bounded memory.",
            search_aliases=["load vae", "video vae", "causal vae", "isa4d", "streaming"],
            inputs=[io.Combo.Input("vae_file", options=video_vae_files(),
                                   tooltip="A file in models/vae; interspatial_tiny_vae ships with the pack.")],
            outputs=[io.Vae.Output(tooltip="Goes to every node that takes a VAE.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, vae_file):
        """A file that was written anew is read anew."""
        about = os.stat(video_vae_path(vae_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, vae_file) -> io.NodeOutput:
        try:
            return io.NodeOutput(load_video_vae(vae_file))
        except ValueError as error:
            raise ValueError(f"Load Interspatial VAE: {error}") from error


class EncodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialEncodeVideo",
            display_name="Encode Video (Streaming)",
            category="interspatial/long video",
            description="Encodes a clip of any length a few frames at a time. The latent is the one that the whole "
            "clip at once would give; device memory does not grow with the length.",
            search_aliases=["vae encode", "long video", "streaming", "chunk", "low memory"],
            inputs=[
                io.Image.Input("images", tooltip="The clip. Sides are cut to multiples of 8 in the middle."),
                io.Vae.Input("vae", tooltip="Exact chunks with the Interspatial VAE and Wan 2.1; other video VAEs run "
                             "whole."),
                chunk_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="Goes to a sampler or to Decode Video (Streaming)."),
                io.String.Output(display_name="report", tooltip="What was done, and how."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, vae, chunk=2) -> io.NodeOutput:
        check_video_vae(vae, "Encode Video (Streaming)")
        if min(images.shape[1:3]) < vae.spacial_compression_encode():
            raise ValueError(f"Encode Video (Streaming): frames of {images.shape[2]} x {images.shape[1]} pixels. "
                             f"Accepted: {vae.spacial_compression_encode()} and more a side.")  # fmt: skip
        latent = encode_video(vae, images, chunk, ticking(1 + len(images) // ratio(vae)))
        lines = [f"{len(images)} frames, {latent.shape[2]} latent frames", why_not_stream(vae) or "in exact chunks"]
        lines.append(length_note(len(images), decoded_frames(vae, latent.shape[2])))
        report = "\n".join(line for line in lines if line)
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput({"samples": latent}, report)


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialDecodeVideo",
            display_name="Decode Video (Streaming)",
            category="interspatial/long video",
            description="Decodes a video latent of any length a few frames at a time. The frames are those that the "
            "whole at once would give, without seams; device memory does not grow with the length.",
            search_aliases=["vae decode", "long video", "streaming", "chunk", "low memory", "tiled"],
            inputs=[
                io.Latent.Input("latent", tooltip="A video latent of this VAE."),
                io.Vae.Input("vae", tooltip="Exact chunks with the Interspatial VAE and Wan 2.1; other video VAEs run "
                             "whole."),
                chunk_input(),
            ],
            outputs=[
                io.Image.Output(tooltip="The frames; clips of a batch follow one another."),
                io.String.Output(display_name="report", tooltip="What was done, and how."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, latent, vae, chunk=2) -> io.NodeOutput:
        check_video_vae(vae, "Decode Video (Streaming)")
        samples = plain_latent(latent)
        if samples.shape[1] != vae.latent_channels:
            raise ValueError(f"Decode Video (Streaming): the latent has {samples.shape[1]} channels, this VAE's have "
                             f"{vae.latent_channels}. Connect the VAE that belongs to the model.")  # fmt: skip
        images = decode_video(vae, samples, chunk, ticking(len(samples) * samples.shape[2]))
        report = f"{len(images)} frames, {why_not_stream(vae) or 'in exact chunks'}"
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(images, report)


class VAEWindowAudit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialVAEWindowAudit",
            display_name="VAE Window Audit",
            category="interspatial/measure",
            description="Encodes and decodes a clip and tells how well each of the frames that share a latent frame "
            "comes back. A VAE that mostly keeps the last of them smears fast motion.",
            search_aliases=["vae quality", "psnr", "reconstruction", "last frame bias", "compare vae"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="A clip with fast motion, 17 frames or more, so that each place is "
                               "measured several times."),
                io.Vae.Input("vae", tooltip="Any video VAE."),
                chunk_input(),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="PSNR by place in the window."),
                io.String.Output(display_name="report", tooltip="The same in words."),
                io.Image.Output(display_name="images", tooltip="The clip as it came back."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, vae, chunk=2) -> io.NodeOutput:
        check_video_vae(vae, "VAE Window Audit")
        tick = ticking(2 * (1 + len(images) // ratio(vae)))
        latent = encode_video(vae, images, chunk, tick)
        back = decode_video(vae, latent, chunk, lambda done: tick(latent.shape[2] + done)).clamp(0, 1)
        found = audit(images, back, ratio(vae))
        lines = describe(found)
        if reason := why_not_stream(vae):
            lines.append(reason)
        sheet = draw_audit(found, "PSNR by place in the window, dB", lines).unsqueeze(0)
        report = "\n".join(lines)
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(sheet, report, back[: len(images)], ui=shown)
