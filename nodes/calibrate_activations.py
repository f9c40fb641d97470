"""Calibrate Activations and Load Activation Statistics: what enters each layer of a model, for quantised weights."""

from __future__ import annotations

import os

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.calibration_files import calibration_files, calibration_path, new_calibration_path
from ..models.host.pattern_files import class_name
from ..models.host.prompts import each_prompt
from ..models.host.quant_trial import linear_layers
from ..models.host.sampling import sample
from ..models.measure.activation_picture import describe, draw_activations
from ..models.quant.calibration import Calibration
from ..models.quant.watch import GRAM_BYTES, ActivationWatch, Findings
from ..models.report import Card
from .run_inputs import run_settings
from .sockets import ACTIVATIONS

GOES_TO = "Goes to Quantize Model and Plan Mixed Precision."


class CalibrateActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialCalibrateActivations",
            display_name="Calibrate Activations",
            category="interspatial/memory",
            description="Samples a few prompts with the model as it is and measures what enters each of its linear "
            "layers: size and largest value of every channel, by part of the noise range. Formats that know it lose "
            "less with the same bits. Made once a model; later prompts and step counts use the same.",
            search_aliases=["quantization", "calibration", "vidit-q", "gptq", "smoothquant", "outliers",
                            "activation statistics"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model in full precision, with the shift that you render with."),
                io.Conditioning.Input("positive", tooltip="A prompt like those that you will render. Several: join "
                                      "them with Conditioning (Combine), each is sampled by itself. 2 to 8 typical."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size and length that you will render; "
                                "a smaller one is faster and finds much the same."),
                *run_inputs(),
                *what_inputs(),
            ],
            outputs=[
                ACTIVATIONS.Output(display_name="activations", tooltip=GOES_TO),
                io.Image.Output(display_name="picture", tooltip="Salience and size over the blocks, by role."),
                io.String.Output(display_name="report", tooltip="Which layers have salient channels, in words."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename=""):
        """Before the run, not after it."""
        try:
            if filename:
                new_calibration_path(filename)
        except ValueError as error:
            return f"Calibrate Activations: {error}"
        return True

    @classmethod
    def execute(
        cls, model, positive, latent_image, negative=None, seed=0, steps=20, cfg=5.0, sampler="euler",
        scheduler="simple", noise_parts=4, products=True, filename="",
    ) -> io.NodeOutput:  # fmt: skip
        watched, findings = watch(model, noise_parts, products)
        prompts = each_prompt(positive)
        for number, prompt in enumerate(prompts):
            sample(watched, prompt, negative, latent_image, seed=seed + number, steps=steps, cfg=cfg, sampler=sampler,
                   scheduler=scheduler)  # fmt: skip
        try:
            found = findings.calibration(model=class_name(model), prompts=len(prompts), steps=steps, cfg=cfg,
                                         sampler=sampler, scheduler=scheduler, seed=seed)  # fmt: skip
        except ValueError as error:
            raise ValueError(f"Calibrate Activations: {error}. The run: {host.report_of(watched)}") from error
        lines = describe(found)
        if filename:
            found.save(path := new_calibration_path(filename))
            lines.append(f"saved as {path.name}, {path.stat().st_size / 1e6:.1f} MB")
        sheet, report = sheet_of(found, lines), "\n".join(lines)
        host.show_text(report, getattr(cls.hidden, "unique_id", None))
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
        return io.NodeOutput(found, sheet, report, ui=shown)


def watch(model, noise_parts: int, products: bool):
    """The model under calibration, and where its findings go."""
    if not linear_layers(model.get_model_object("diffusion_model")):
        raise ValueError(
            f"Calibrate Activations: {class_name(model)} has no linear layers in numbered blocks that ComfyUI computes "
            "by itself. Accepted: video models from Load Diffusion Model or a checkpoint loader; files of other "
            "formats, such as GGUF, are quantised already."
        )
    findings = Findings(noise_parts, GRAM_BYTES if products else 0)
    method = ActivationWatch(findings, host.check_interrupt)
    return host.attach_step(model, Card("activations", "measure"), method), findings


def sheet_of(found: Calibration, lines):
    """The picture of activation statistics as an IMAGE."""
    return draw_activations(found, lines).unsqueeze(0)


def run_inputs() -> list:
    """The runs that are watched."""
    return [
        io.Conditioning.Input("negative", optional=True,
                              tooltip="The negative prompt of the runs, measured like the positive one. Without it "
                              "the runs have no guidance."),
        *run_settings("Steps of each run; 8 or more see the whole noise range.", " Another one may use the "
                      "statistics."),
    ]  # fmt: skip


def what_inputs() -> list:
    """What is measured, and what becomes of it."""
    return [
        io.Int.Input("noise_parts", default=4, min=1, max=32, optional=True, advanced=True,
                     tooltip="Parts of the noise range with statistics of their own, 4 typical; not above the number "
                     "of steps."),
        io.Boolean.Input("products", default=True, optional=True, advanced=True,
                         tooltip="Also sums the products of channels, inputs for error feedback, which matters most at "
                         "4 bits and less. For layers of up to 4096 inputs; takes up to 2 GB of the card's memory, and "
                         "half of that in the file."),
        io.String.Input("filename", default="", optional=True,
                        tooltip="Saves the statistics in models/activation_stats for Load Activation Statistics, in "
                        "place of an older file of that name. Empty: not saved."),
    ]  # fmt: skip


class LoadActivations(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadActivations",
            display_name="Load Activation Statistics",
            category="interspatial/memory",
            description="Loads statistics that Calibrate Activations has saved.",
            search_aliases=["quantization", "calibration", "vidit-q", "activation statistics"],
            inputs=[io.Combo.Input("activations_file", options=calibration_files(),
                                   tooltip="A file in models/activation_stats, made with the model that you "
                                   "quantise.")],
            outputs=[
                ACTIVATIONS.Output(display_name="activations", tooltip=GOES_TO),
                io.Image.Output(display_name="picture", tooltip="Salience and size over the blocks, by role."),
                io.String.Output(display_name="report", tooltip="Which layers have salient channels, in words."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, activations_file):
        """A file that was written anew is read anew."""
        about = os.stat(calibration_path(activations_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, activations_file) -> io.NodeOutput:
        found = Calibration.load(calibration_path(activations_file))
        lines = describe(found)
        return io.NodeOutput(found, sheet_of(found, lines), "\n".join(lines))
