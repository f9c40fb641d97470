"""Plan Mixed Precision and Load Precision Plan: which layers get how many bits, by what they do to the clip."""

from __future__ import annotations

import math
import os

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.pattern_files import class_name
from ..models.host.plan_files import new_plan_path, plan_files, plan_path
from ..models.host.prompts import each_prompt
from ..models.host.quant_trial import linear_layers
from ..models.host.sampling import sample
from ..models.measure.precision_picture import describe, draw_precision, table_of
from ..models.quant.plan import load_plan, make_plan, measured_of
from ..models.quant.recipe import Choice
from ..models.quant.sensitivity import DETAILS, Findings, Sensitivity, measured_steps, probe_of, trials_of, usable
from ..models.report import Card
from .run_inputs import run_settings
from .sockets import ACTIVATIONS, PLAN

WIDE = ("vidit_q 8", "vidit_q 6", "vidit_q 4", "lrq 4")
NARROW = ("lrq 4", "lrq 3", "vq4 2")
CANDIDATES = {
    "8 to 4 bits": WIDE, "8 to 3 bits": (*WIDE, "lrq 3"), "4 to 2 bits": NARROW,
    "8 to 2 bits": (*WIDE, *NARROW[1:]),
}  # fmt: skip
GOES_TO = "Goes to Quantize Model and Will It Fit."


class PlanPrecision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialPlanPrecision",
            display_name="Plan Mixed Precision",
            category="interspatial/memory",
            description="Samples with the model as it is and tries each layer in few bits on the way: which ones hurt "
            "content, which motion, which text. Then gives bits where they matter, within a budget.",
            search_aliases=["quantization", "mixed precision", "bit allocation", "sensitivity", "vidit-q", "low vram",
                            "bits per weight"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model in full precision, with the shift and LoRAs that you render "
                               "with."),
                io.Conditioning.Input("positive", tooltip="A prompt like those that you will render. Several: join "
                                      "them with Conditioning (Combine), each is sampled by itself. 1 or 2 typical."),
                io.Latent.Input("latent_image", tooltip="An empty latent; a small and short one is faster and finds "
                                "much the same, with two latent frames or more for motion."),
                *budget_inputs(),
                *measure_inputs(),
                *run_settings("Steps of each run; 10 or more see the whole noise range."),
            ],
            outputs=[
                PLAN.Output(display_name="plan", tooltip=GOES_TO),
                io.Image.Output(display_name="picture", tooltip="Bits and sensitivity by block and role."),
                io.String.Output(display_name="report", tooltip="The plan in words, with a line for each layer."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename=""):
        """Before the run, not after it."""
        try:
            if filename:
                new_plan_path(filename)
        except ValueError as error:
            return f"Plan Mixed Precision: {error}"
        return True

    @classmethod
    def execute(
        cls, model, positive, latent_image, bits_per_weight=4.5, negative=None, budget_gb=0.0,
        candidates="8 to 3 bits", content=1.0, motion=1.0, text=1.0, least_ends=0, calibration=None, detail="layer",
        trial_steps=4, measured=None, filename="", **run,
    ) -> io.NodeOutput:  # fmt: skip
        try:
            if measured is None:
                chosen = tuple(map(Choice.parse, CANDIDATES[candidates]))
                stats = {} if calibration is None else calibration.layers
                table = measure(model, positive, negative, latent_image, chosen, stats, detail, trial_steps, run)
            else:
                table = same_model(model, measured).measured
            plan = make_plan(table, budget_of(model, table, bits_per_weight, budget_gb), (content, motion, text),
                             least_ends)  # fmt: skip
        except ValueError as error:
            raise ValueError(f"Plan Mixed Precision: {error}.") from error
        lines = describe(plan)
        if filename:
            plan.save(path := new_plan_path(filename))
            lines.append(f"saved as {path.name}")
        return shown(cls, plan, lines)


def measure(model, positive, negative, latent, choices, stats, detail: str, count: int, run: dict):
    """The runs, one for each prompt, and what they have shown."""
    layers = layers_to_try(model)
    choices = usable({name: tuple(layer.weight.shape) for name, layer in layers.items()}, choices)
    trials = trials_of(choices, detail, {layer: probe_of(some) for layer, some in choices.items()})
    prompts, guided = each_prompt(positive), negative is not None and not math.isclose(run.get("cfg", 5.0), 1.0)
    steps = len(measured_steps(count, run.get("steps", 20)))
    found, tick = Findings(), ticking(len(prompts) * (len(layers) + steps * len(trials)))
    method = Sensitivity(trials, found, choices, guided, count, stats=stats, tick=tick)
    watched = host.attach_step(model, Card("precision", "measure"), method)
    for number, prompt in enumerate(prompts):
        settings = {"steps": 20, "cfg": 5.0, "sampler": "euler", "scheduler": "simple", **run}
        sample(watched, prompt, negative, latent, **{**settings, "seed": run.get("seed", 0) + number})
    if not found.calls:
        raise ValueError(f"no step was measured. The run: {host.report_of(watched)}")
    return measured_of(found, trials, choices, stats, model=class_name(model), prompts=len(prompts), detail=detail,
                       trial_steps=steps, calibrated=bool(stats), **run)  # fmt: skip


def layers_to_try(model) -> dict:
    """The linear layers of a model. raises: ValueError"""
    if patches := host.patches_of(model):
        raise ValueError(f"the model has {patches[0].card.name} on it, and layers are judged on the model as it is. "
                         "Connect the model from before that node")  # fmt: skip
    layers = linear_layers(model.get_model_object("diffusion_model"))
    if not layers:
        raise ValueError(
            f"{class_name(model)} has no linear layers in numbered blocks that ComfyUI computes by itself. Accepted: "
            "video models from Load Diffusion Model or a checkpoint loader"
        )
    return layers


def same_model(model, plan):
    """The plan, when it is of this model. raises: ValueError"""
    layers = linear_layers(model.get_model_object("diffusion_model"))
    if reason := plan.why_not({name: tuple(layer.weight.shape) for name, layer in layers.items()}):
        raise ValueError(f"the connected plan is of another model: {reason}. Take the model that it was made with, or "
                         "disconnect it to measure this one")  # fmt: skip
    return plan


def budget_of(model, table, bits: float, gigabytes: float) -> int:
    """Bytes for the layers of the table. gigabytes: of the whole diffusion model; 0: by bits per weight"""
    if not gigabytes:
        return int(table.weights * bits / 8)
    modules = linear_layers(model.get_model_object("diffusion_model"))
    parameters = model.get_model_object("diffusion_model").parameters()
    rest = sum(x.nbytes for x in parameters) - sum(modules[layer].weight.nbytes for layer in table.shapes)
    if gigabytes * 1e9 <= rest:
        raise ValueError(f"{gigabytes:g} GB are less than the {rest / 1e9:.2f} GB of what is not quantised. Raise "
                         "budget_gb, or set it to 0 and plan by bits per weight")  # fmt: skip
    return int(gigabytes * 1e9 - rest)


def ticking(total: int):
    """Counts evaluations and layers on the node, and ends them when the user asks for it."""
    bar, done = host.progress_bar(total), iter(range(1, total + 1))

    def tick() -> None:
        host.check_interrupt()
        bar(next(done, total))

    return tick


def shown(cls, plan, lines) -> io.NodeOutput:
    """What both nodes give and show."""
    sheet, report = draw_precision(plan, lines).unsqueeze(0), "\n".join([*lines, "", *table_of(plan)])
    host.show_text("\n".join(lines), getattr(cls.hidden, "unique_id", None))
    seen = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()}
    return io.NodeOutput(plan, sheet, report, ui=seen)


def budget_inputs() -> list:
    """What the plan may take, and what it is to protect."""
    return [
        io.Float.Input("bits_per_weight", default=4.5, min=2.0, max=8.5, step=0.05, optional=True,
                       tooltip="Mean size of the quantised layers, with scales and tables. 4.5 is close to the "
                       "original, 3.5 for small cards."),
        io.Conditioning.Input("negative", optional=True,
                              tooltip="The negative prompt of the runs. Without it text is not measured."),
        io.Float.Input("budget_gb", default=0.0, min=0.0, max=1000.0, step=0.1, optional=True,
                       tooltip="Size of the whole diffusion model in GB (1e9 bytes), in place of bits per weight. 0: "
                       "by bits per weight."),
        io.Combo.Input("candidates", options=list(CANDIDATES), default="8 to 3 bits", optional=True,
                       tooltip="What each layer may be kept in: ViDiT-Q at 8, 6 and 4 bits, LRQ-DiT at 4 and 3, VQ4DiT "
                       "at 2. More candidates fit a budget better and take longer to encode."),
        *[io.Float.Input(name, default=1.0, min=0.0, max=100.0, step=0.1, optional=True, tooltip=f"How much {what} "
                         "counts; 0: not at all, 2: twice as much. Only the ratios of the three matter.")
          for name, what in (("content", "what is to be seen"), ("motion", "what moves"),
                             ("text", "what the prompt adds"))],
    ]  # fmt: skip


def measure_inputs() -> list:
    """How sensitivity is found, and what becomes of it."""
    return [
        ACTIVATIONS.Input("calibration", optional=True, tooltip="From Calibrate Activations with this model; connect "
                          "the same to Quantize Model."),
        PLAN.Input("measured", optional=True,
                   tooltip="A plan for this model whose measurement is used again, with its candidates: another budget "
                   "or other weights in no time. Nothing is sampled then."),
        io.String.Input("filename", default="", optional=True,
                        tooltip="Saves the plan in models/quant_plans for Load Precision Plan, in place of an older "
                        "one of that name. Empty: not saved."),
        io.Combo.Input("detail", options=list(DETAILS), default="layer", optional=True, advanced=True,
                       tooltip="What is tried by itself. layer: each linear layer, as many evaluations of the model as "
                       "layers times measured steps; module: each attention and each MLP of each block, a third to a "
                       "fifth of that; role: layers of one kind in all blocks, some ten in all."),
        io.Int.Input("trial_steps", default=4, min=1, max=100, optional=True, advanced=True,
                     tooltip="Steps of each run in which layers are tried, spread evenly; 2 to 4 typical."),
        io.Int.Input("least_ends", default=0, min=0, max=8, optional=True, advanced=True,
                     tooltip="Least bits for the first and the last block, whatever was measured; 0: as measured, 4 or "
                     "8 to be careful."),
    ]  # fmt: skip


class LoadPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialLoadPlan",
            display_name="Load Precision Plan",
            category="interspatial/memory",
            description="Loads a plan that Plan Mixed Precision has saved: a format and width for each layer.",
            search_aliases=["quantization", "mixed precision", "bit allocation", "bits per weight"],
            inputs=[io.Combo.Input("plan_file", options=plan_files(), tooltip="A file in models/quant_plans.")],
            outputs=[
                PLAN.Output(display_name="plan", tooltip=GOES_TO),
                io.Image.Output(display_name="picture", tooltip="Bits and sensitivity by block and role."),
                io.String.Output(display_name="report", tooltip="The plan in words, with a line for each layer."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, plan_file):
        """A file that was written anew is read anew."""
        about = os.stat(plan_path(plan_file))
        return f"{about.st_mtime_ns} {about.st_size}"

    @classmethod
    def execute(cls, plan_file) -> io.NodeOutput:
        plan = load_plan(plan_path(plan_file))
        return shown(cls, plan, describe(plan))
