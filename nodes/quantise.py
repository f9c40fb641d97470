"""Quantize Model and Load Quantized Video Model: files of models in few bits, written and loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.quant_loading import kept_as, load_quantised_model
from ..models.host.quant_sources import (
    FileSource,
    ModelSource,
    encode_device,
    model_files,
    model_path,
    new_model_path,
)
from ..models.quant.format import FORMATS
from ..models.quant.quantise import layers_of, quantise
from ..models.quant.recipe import Choice, Recipe
from ..models.quant.spoken import SpokenLayers
from ..models.report import Card
from .sockets import ACTIVATIONS, PLAN
from .ticking import ticking

CHOICES = {choice.label: choice for name, form in FORMATS.items() for bits in form.widths
           if (choice := Choice(name, bits))}  # fmt: skip
DEFAULT = "ViDiT-Q 8-bit"
CONNECTED = "the connected model"
BITS = {"8 bits": 8, "16 bits": 16}
AS_WRITTEN = {"as the file says": 0, **BITS}


class QuantizeModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialQuantizeModel",
            display_name="Quantize Model",
            category="interspatial/memory",
            description="Writes a file of a video model with its weights in 2 to 8 bits, layer by layer, so that "
            "memory holds one layer whatever the size of the model, and loads it. What was written before with the "
            "same settings is taken at once; a run that was stopped goes on where it was.",
            search_aliases=["quantization", "vidit-q", "lrq-dit", "vq4dit", "int8", "int4", "low vram", "compress",
                            "convert model", "gguf"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("format", options=list(CHOICES), default=DEFAULT,
                               tooltip="How every layer is kept. 8 bits change next to nothing; 4 bits are the usual "
                               "choice for memory; 3 and 2 bits want a calibration. A connected plan counts instead."),
                io.String.Input("name", default="", optional=True,
                                tooltip="Name of the file in models/diffusion_models. Empty: of the model's own file "
                                "and the format."),
                *source_inputs(),
                *settings_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The quantised model, loaded from the file. LoRAs, shift and other patches go "
                                "after it."),
                io.String.Output(display_name="file", tooltip="Name of the file, for Load Quantized Video Model."),
                io.String.Output(display_name="report", tooltip="Layers, sizes, bits and errors."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name="", keep=""):
        """Before the run, not after it."""
        try:
            if name:
                new_model_path(name)
            re.compile(keep)
        except ValueError as error:
            return f"Quantize Model: {error}"
        except re.error as error:
            return f"Quantize Model: keep is no regular expression: {error}."
        return True

    @classmethod
    def fingerprint_inputs(cls, source=CONNECTED, **others):
        """A file that was written anew is quantised anew."""
        return "" if source == CONNECTED else stamp(source)

    @classmethod
    def execute(
        cls, format, name="", model=None, source=CONNECTED, calibration=None, plan=None, activations="8 bits", keep="",
        overwrite=False,
    ) -> io.NodeOutput:  # fmt: skip
        node_id = getattr(cls.hidden, "unique_id", None)
        try:
            weights = source_of(model, source)
            recipe, said = recipe_of(weights, CHOICES[format], plan, keep)
            path = new_model_path(name or default_name(weights, format, plan))
            done = quantise(weights, recipe, path, calibration, BITS[activations], ticking(len(recipe.layers)),
                            encode_device, overwrite)  # fmt: skip
            loaded = spoken(load_quantised_model(str(path)), node_id)
        except (ValueError, OSError) as error:
            raise ValueError(f"Quantize Model: {error}") from error
        report = "\n".join([*done.lines(), *said, *unsaid(weights, recipe, calibration)])
        host.show_text(report, node_id)
        return io.NodeOutput(loaded, path.name, report, ui=ui.PreviewText(report))


class LoadQuantized(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadQuantized",
            display_name="Load Quantized Video Model",
            category="interspatial/memory",
            description="Loads a diffusion model whose layers are kept in few bits: files of Quantize Model, and those "
            "in ComfyUI's own formats (int8, fp8, nvfp4), also both in one file. LoRAs, offloading and saving work as "
            "with any model.",
            search_aliases=["quantization", "vidit-q", "lrq-dit", "vq4dit", "int8", "int4", "unet loader", "low vram",
                            "load diffusion model"],
            inputs=[
                io.Combo.Input("file", options=model_files(), tooltip="A file in models/diffusion_models."),
                io.Combo.Input("activations", options=list(AS_WRITTEN), optional=True, advanced=True,
                               default="as the file says",
                               tooltip="8 bits: what enters a layer is rounded as well, and whole numbers are "
                               "multiplied; the fast way on most cards. 16 bits: weights are decoded for each use; "
                               "closer to the original."),
            ],
            outputs=[io.Model.Output(tooltip="The model. LoRAs, shift and other patches go after it.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file, **others):
        """A file that was written anew is read anew."""
        return stamp(file)

    @classmethod
    def execute(cls, file, activations="as the file says") -> io.NodeOutput:
        node_id = getattr(cls.hidden, "unique_id", None)
        try:
            model = load_quantised_model(model_path(file), AS_WRITTEN[activations])
        except (ValueError, OSError) as error:
            raise ValueError(f"Load Quantized Video Model: {error}") from error
        host.show_text("\n".join(described(model)), node_id)
        return io.NodeOutput(spoken(model, node_id))


def source_inputs() -> list:
    """What is quantised, and what is known about it."""
    return [
        io.Model.Input("model", optional=True,
                       tooltip="The model to quantise, with the LoRAs that are to be in the file for good."),
        io.Combo.Input("source", options=[CONNECTED, *model_files()], default=CONNECTED, optional=True,
                       tooltip="A file in models/diffusion_models instead of a connected model; it is not loaded, so "
                       "it may be larger than memory."),
        ACTIVATIONS.Input("calibration", optional=True,
                          tooltip="From Calibrate Activations with this model. Less is lost at the same size."),
        PLAN.Input("plan", optional=True,
                   tooltip="From Plan Mixed Precision: a format for each layer, in place of one for all."),
    ]  # fmt: skip


def settings_inputs() -> list:
    """How it is written."""
    return [
        io.Combo.Input("activations", options=list(BITS), default="8 bits", optional=True, advanced=True,
                       tooltip="What the file says of activations. 8 bits: rounded for each token, whole numbers are "
                       "multiplied; fast. 16 bits: left as they are. Can be changed when the file is loaded."),
        io.String.Input("keep", default="", optional=True, advanced=True,
                        tooltip="Layers to leave as they are: a regular expression found in their names, such as "
                        "^blocks\\.0\\. for the first block."),
        io.Boolean.Input("overwrite", default=False, optional=True, advanced=True,
                         tooltip="Replace a file of that name that was made from another model or with other "
                         "settings."),
    ]  # fmt: skip


def source_of(model, source: str):
    """Where the weights come from. raises: ValueError"""
    if (model is None) == (source == CONNECTED):
        raise ValueError("one source is needed: connect a model and leave 'source' at 'the connected model', or choose "
                         "a file there and connect none.")  # fmt: skip
    return ModelSource(model) if source == CONNECTED else FileSource(model_path(source))


def recipe_of(weights, choice: Choice, plan, keep: str) -> tuple[Recipe, list[str]]:
    """What becomes of each layer, and lines about layers that are left."""
    shapes = layers_of(weights)
    form = FORMATS[choice.format]
    left = {layer: reason for layer, shape in shapes.items() if (reason := form.why_not(shape, choice.bits))}
    recipe = plan.recipe if plan is not None else Recipe.same((x for x in shapes if x not in left), choice)
    kept = [layer for layer in recipe.layers if keep and re.search(keep, layer)]
    if keep and not kept:
        raise ValueError(f"keep {keep!r} is found in the name of no layer. Accepted: part of a name such as "
                         f"{next(iter(shapes), 'blocks.0.ffn.0')}, or nothing.")  # fmt: skip
    said = [f"kept as they are, as asked: {len(kept)} layers"] if kept else []
    if left and plan is None:
        layer, reason = next(iter(left.items()))
        said.append(f"kept as they are, unfit for the format: {len(left)} layers, such as {layer}: {reason}")
    return Recipe({layer: to for layer, to in recipe.layers.items() if layer not in set(kept)}), said


def default_name(weights, format: str, plan) -> str:
    """The source's file and the format. raises: ValueError when the source is no file"""
    if weights.path is None:
        raise ValueError("the file that this model is from is not known. Give the new one a name.")
    kind = "mixed" if plan is not None else str(CHOICES[format]).replace(" ", "")
    return f"{weights.path.stem}_{kind}"


def spoken(model, node_id):
    """The model with a line about its formats in the report of each run."""
    others = tuple((kept.name, kept.layers) for kept in kept_as(model) if not kept.ours)
    return host.attach_step(model, Card("quantised weights", "quant"), SpokenLayers(others), node_id)


def described(model) -> list[str]:
    """How the layers of a loaded model are kept."""
    lines = [f"{kept.name}: {kept.layers} layers, {8 * kept.nbytes / kept.weights:.2f} bits a weight"
             for kept in kept_as(model)]  # fmt: skip
    return lines or ["no layer of this file is quantised"]


def unsaid(weights, recipe: Recipe, calibration) -> list[str]:
    """What the user may miss: patches that are not in the file, layers that the calibration does not know."""
    lines = []
    if isinstance(weights, ModelSource) and (left := weights.left_out()):
        lines.append(f"not in the file: {'; '.join(left)}. Put such nodes after this one.")
    if calibration is not None:
        unknown = [layer for layer in recipe.layers if layer not in calibration.layers]
        if unknown:
            lines.append(f"without statistics: {len(unknown)} layers, such as {unknown[0]}")
    return lines


def stamp(file: str) -> str:
    """Changes when a file does; empty for one that is not there, which the run will say."""
    try:
        about = os.stat(Path(model_path(file)))
    except OSError:
        return ""
    return f"{about.st_mtime_ns} {about.st_size}"
