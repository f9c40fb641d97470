"""Calibrate Sparse Pattern and Load Sparse Pattern: a fixed attention pattern for each head, measured once a model."""

from __future__ import annotations

import os

from comfy_api.latest import io, ui

from ..models import host
from ..models.attention import ORDERS, Blocks
from ..models.attention.calibrate import Calibration
from ..models.attention.pattern_file import read_table, write_table
from ..models.attention.pattern_findings import Findings
from ..models.attention.patterns import FRAMES, HEADS
from ..models.attention.sparse_vdit import LINK
from ..models.host.pattern_files import class_name, new_pattern_path, pattern_files, pattern_path
from ..models.host.sampling import sample
from ..models.measure.pattern_picture import describe, draw_pattern
from ..models.report import Card
from .run_inputs import run_settings
from .speed import TAILS

PATTERN = io.Custom(LINK)
BY_HEAD, BY_LAYER = "head patterns (Sparse-vDiT)", "reference frames (Efficient-vDiT)"
CANDIDATES = {BY_HEAD: HEADS, BY_LAYER: FRAMES}


class CalibrateSparsePattern(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialCalibrateSparsePattern",
            display_name="Calibrate Sparse Pattern",
            category="interspatial/speed",
            description="Samples once, with attention as it is, and measures what fixed sparse patterns would cost "
            "each head of the model. The result goes to Sparse Video Attention, method sparse_vdit, and serves all "
            "later prompts, samplers and step counts.",
            search_aliases=["sparse-vdit", "efficient-vdit", "attention tile", "calibration", "head pattern",
                            "sparse attention"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to calibrate, with the LoRAs that you render with and "
                               "without Sparse Video Attention."),
                io.Conditioning.Input("positive", tooltip="A prompt like those that you will render."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size and length that you will render; "
                                "other sizes can use the pattern too."),
                *run_inputs(),
                *pattern_inputs(),
            ],
            outputs=[
                PATTERN.Output(display_name="pattern", tooltip="Goes to Sparse Video Attention, method sparse_vdit."),
                io.Image.Output(display_name="picture", tooltip="Layers by heads, coloured by pattern."),
                io.String.Output(display_name="report", tooltip="The pattern in words."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename=""):
        """Before the run, not after it."""
        try:
            if filename:
                new_pattern_path(filename)
        except ValueError as error:
            return f"Calibrate Sparse Pattern: {error}"
        return True

    @classmethod
    def execute(
        cls, model, positive, latent_image, negative=None, seed=0, steps=20, cfg=5.0, sampler="euler",
        scheduler="simple", density=0.3, filename="", earlier=None, **what,
    ) -> io.NodeOutput:  # fmt: skip
        watched, findings = watch(model, **what)
        sample(watched, positive, negative, latent_image, seed=seed, steps=steps, cfg=cfg, sampler=sampler,
               scheduler=scheduler)  # fmt: skip
        try:
            table = findings.table(density, class_name(model), earlier)
        except ValueError as error:
            raise ValueError(f"Calibrate Sparse Pattern: {error}. The run: {host.report_of(watched)}") from error
        lines = describe(table)
        if filename:
            write_table(table, path := new_pattern_path(filename))
            lines.append(f"saved as {path.name}")
        sheet, report = sheet_of(table, lines), "\n".join(lines)
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(table, sheet, report, ui=shown)


def watch(model, what=BY_HEAD, tail="each query", noise_parts=10, block_order="auto", block_side=0):
    """The model under calibration, and where its findings go."""
    if any(patch.card.kind == "sparse" for patch in host.patches_of(model)):
        raise ValueError(
            "Calibrate Sparse Pattern: the model has Sparse Video Attention on it, and a pattern is measured on dense "
            "attention. Connect the model from before that node."
        )
    findings = Findings(CANDIDATES[what], TAILS[tail], noise_parts)
    blocks = Blocks(None if block_order == "auto" else block_order, block_side)
    method = Calibration(findings, blocks, tick=host.check_interrupt)
    return host.attach_attention(model, Card("calibration", "measure"), method), findings


def sheet_of(table, lines):
    """The picture of a pattern as an IMAGE."""
    return draw_pattern(table, lines).unsqueeze(0)


def run_inputs() -> list:
    """The run that is watched."""
    return [
        io.Conditioning.Input("negative", optional=True,
                              tooltip="The negative prompt of the run. Without it the run has no guidance. It is not "
                              "measured."),
        *run_settings("Steps of the run; 10 or more see the whole noise range.", " Another one may use the pattern."),
    ]  # fmt: skip


def pattern_inputs() -> list:
    """What is measured, and what becomes of it."""
    return [
        io.Combo.Input("what", options=list(CANDIDATES), default=BY_HEAD, optional=True,
                       tooltip="head patterns: each head gets one of diagonal, places, stripes, skip and full. "
                       "reference frames: each layer gets a number of frames that all others look at."),
        io.Float.Input("density", default=0.3, min=0.02, max=1.0, step=0.01, optional=True,
                       tooltip="Share of attention blocks that the pattern computes, 0.3 typical. Sparse Video "
                       "Attention can ask the same pattern for another density."),
        io.Combo.Input("tail", options=list(TAILS), default="each query", optional=True,
                       tooltip="What becomes of the blocks that are not kept; as Sparse Video Attention will have it."),
        io.String.Input("filename", default="", optional=True,
                        tooltip="Saves the pattern in models/sparse_patterns for Load Sparse Pattern, in place of an "
                        "older one of that name. Empty: not saved."),
        PATTERN.Input("earlier", optional=True,
                      tooltip="The pattern of another calibration with the same settings and another prompt: both are "
                      "averaged. Two to four prompts are plenty."),
        io.Int.Input("noise_parts", default=10, min=1, max=100, optional=True, advanced=True,
                     tooltip="Parts of the noise range with patterns of their own. 10 suits 20 steps; more follow the "
                     "run closer and rest on fewer calls each."),
        io.Combo.Input("block_order", options=["auto", *ORDERS], default="auto", optional=True, advanced=True,
                       tooltip="Which tokens share a block, as in Sparse Video Attention; the pattern keeps it."),
        io.Int.Input("block_side", default=0, min=0, max=16, optional=True, advanced=True,
                     tooltip="Tokens along a block's side; the pattern keeps it. 0: blocks of 64 tokens; 2 to 4 suit "
                     "tiny models."),
    ]  # fmt: skip


class LoadSparsePattern(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadSparsePattern",
            display_name="Load Sparse Pattern",
            category="interspatial/speed",
            description="Loads a pattern that Calibrate Sparse Pattern has saved, for Sparse Video Attention, method "
            "sparse_vdit.",
            search_aliases=["sparse-vdit", "calibration", "head pattern", "sparse attention"],
            inputs=[io.Combo.Input("pattern_file", options=pattern_files(),
                                   tooltip="A file in models/sparse_patterns, made with the model that you render "
                                   "with.")],
            outputs=[
                PATTERN.Output(display_name="pattern", tooltip="Goes to Sparse Video Attention, method sparse_vdit."),
                io.Image.Output(display_name="picture", tooltip="Layers by heads, coloured by pattern."),
                io.String.Output(display_name="report", tooltip="The pattern in words."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, pattern_file):
        """A file that was written anew is read anew."""
        about = os.stat(pattern_path(pattern_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, pattern_file) -> io.NodeOutput:
        table = read_table(pattern_path(pattern_file))
        lines = describe(table)
        return io.NodeOutput(table, sheet_of(table, lines), "\n".join(lines))
