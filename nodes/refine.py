"""Refine Quantized Model: the weights of a quantised file learn from the model in full precision."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models import host
from ..models.host.block_replay import Evaluation, recorded
from ..models.host.prompts import each_prompt
from ..models.host.quant_loading import load_quantised_model
from ..models.host.quant_sources import FileSource, model_files, model_path, new_model_path
from ..models.host.refine_file import digest, refine_file
from ..models.host.refining import coded_blocks, network_of, why_not_refined
from ..models.host.sampling import sample, small_latent
from ..models.quant.refine import Effort
from .quantise import spoken, stamp
from .run_inputs import run_settings

SUFFIX = "_refined"


class RefineQuantized(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialRefineQuantized",
            display_name="Refine Quantized Model",
            category="interspatial/memory",
            description="Samples a few prompts with the model in full precision, and lets the quantised one learn from "
            "it, block by block: codebooks, scales, biases, and which vector each group of weights becomes. Needs no "
            "data. Writes a new file of the same size, and loads it.",
            search_aliases=["vq4dit", "quantization", "calibration", "distillation", "2 bit", "3 bit", "codebook"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model in full precision that the file was made from, with the "
                               "shift that you render with."),
                io.Combo.Input("file", options=model_files(),
                               tooltip="A file in models/diffusion_models that Quantize Model wrote. VQ4DiT learns "
                               "everything; other formats their scales and biases."),
                io.Conditioning.Input("positive", tooltip="A prompt like those that you will render. Several: join "
                                      "them with Conditioning (Combine), each is sampled by itself. 8 to 32 typical."),
                io.Latent.Input("latent_image", optional=True,
                                tooltip="An empty latent, of the size that you render or a smaller one, which is "
                                "faster. Without it: 5 latent frames of 32 x 32."),
                io.String.Input("name", default="", optional=True,
                                tooltip=f"Name of the new file in models/diffusion_models. Empty: the file's name and "
                                f"{SUFFIX}."),
                *run_inputs(),
                *effort_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The refined model, loaded from the new file. LoRAs, shift and other patches "
                                "go after it."),
                io.String.Output(display_name="report", tooltip="The error of each block before and after."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name=""):
        """Before the run, not after it."""
        try:
            if name:
                new_model_path(name)
        except ValueError as error:
            return f"Refine Quantized Model: {error}"
        return True

    @classmethod
    def fingerprint_inputs(cls, file, **others):
        """A file that was written anew is refined anew."""
        return stamp(file)

    @classmethod
    def execute(
        cls, model, file, positive, latent_image=None, name="", negative=None, seed=0, steps=12, cfg=5.0,
        sampler="euler", scheduler="simple", iterations=Effort.iterations, candidates=Effort.candidates,
    ) -> io.NodeOutput:  # fmt: skip
        node_id = getattr(cls.hidden, "unique_id", None)
        settings = {"seed": seed, "steps": steps, "cfg": cfg, "sampler": sampler, "scheduler": scheduler}
        prompts, effort = each_prompt(positive), Effort(iterations, candidates)
        latent_image = latent_image or small_latent(model)
        try:
            source = FileSource(model_path(file))
            student = load_quantised_model(str(source.path))
            if reason := why_not_refined(model, student):
                raise ValueError(f"{file} cannot be refined: {reason}. Connect the model in full precision that the "
                                 "file was made from, and choose a file that Quantize Model wrote.")  # fmt: skip
            path = new_model_path(name or f"{source.path.stem}{SUFFIX}")
            run = f"{settings} {tuple(latent_image['samples'].shape)} {digest([*prompts, negative or []])}"
            done = refine_file(
                model, student, source, lambda: evaluations(model, prompts, negative, latent_image, settings), run,
                path, effort, ticking(student, len(prompts) * steps, effort),
            )  # fmt: skip
            refined = spoken(load_quantised_model(str(path)), node_id)
        except (ValueError, OSError) as error:
            raise ValueError(f"Refine Quantized Model: {error}") from error
        report = "\n".join(done.lines())
        host.show_text(report, node_id)
        return io.NodeOutput(refined, report, ui=ui.PreviewText(report))


def evaluations(model, prompts: list, negative, latent: dict, settings: dict) -> list[Evaluation]:
    """Those of the model in full precision, for all prompts."""
    network, found = network_of(model), []
    for number, prompt in enumerate(prompts):
        each = {**settings, "seed": settings["seed"] + number}
        found += recorded(network, lambda p=prompt, e=each: sample(model, p, negative, latent, **e))
    if not found:
        raise ValueError("the model did not run when it was sampled. Connect it without torch.compile and step caches")
    return found


def ticking(student, evaluated: int, effort: Effort):
    """Progress on the node, and the user's interrupt."""
    bar, done = host.progress_bar(len(coded_blocks(network_of(student))) * (evaluated + effort.iterations)), 0

    def tick() -> None:
        nonlocal done
        host.check_interrupt()
        bar(done := done + 1)

    return tick


def run_inputs() -> list:
    """The runs that it learns from."""
    return [
        io.Conditioning.Input("negative", optional=True,
                              tooltip="The negative prompt of the runs. Without it they have no guidance, and the "
                              "model does not learn what it does without a prompt."),
        *run_settings("Steps of each run; 8 or more see the whole noise range.", " Another one may use the file."),
    ]  # fmt: skip


def effort_inputs() -> list:
    """How long and how much is learned."""
    return [
        io.Int.Input("iterations", default=Effort.iterations, min=10, max=100000, optional=True,
                     tooltip="Of each block, one call of the block with its gradients each. 300 typical."),
        io.Int.Input("candidates", default=Effort.candidates, min=1, max=8, optional=True, advanced=True,
                     tooltip="VQ4DiT: vectors that a group of weights may become while codebook, scales and biases "
                     "learn; the paper has 2 to 4. 1 was better and takes less memory: groups choose among all "
                     "vectors twice anyway, before the learning and in its middle."),
    ]  # fmt: skip
