"""W2SD Reflection: a sampler that moves the latent from a weak towards a strong model."""

from __future__ import annotations

from comfy_api.latest import io

from ..models import host
from ..models.guidance import LABELS, CfgRoles, LoraRoles, ModelRoles, PromptRoles, Reflection
from ..models.schedule import StepWindow


class W2SDReflection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InterspatialW2SDReflection",
            display_name="W2SD Reflection",
            category="interspatial/control",
            description="A sampler that takes each early step forth with a strong and back with a weak model before it "
            "goes on. Two more evaluations of the model for each such step; the node says how many when sampling "
            "starts.",
            search_aliases=["w2sd", "weak to strong", "reflection", "z-sampling", "zigzag", "quality", "guidance"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler to wrap, such as KSamplerSelect gives. Most of "
                                 "ComfyUI's own; uni_pc and the _cfg_pp ones are refused."),
                roles_input(),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Share of the model's noise range after which steps are reflected; 0 is pure "
                               "noise."),
                io.Float.Input("end_percent", default=0.5, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Share of the model's noise range up to which steps are reflected; 1 is the "
                               "finished picture. Equal to start_percent: no step."),
                io.Float.Input("strength", default=1.0, min=-2.0, max=2.0, step=0.05, optional=True,
                               tooltip="Share of the displacement that is taken. 1 as in the paper; 0: off; below 0: "
                               "from strong to weak."),
                io.Int.Input("every_n", default=1, min=1, max=100, optional=True, advanced=True,
                             tooltip="Reflect in every n-th step of the window. 2 halves what it costs."),
                io.Combo.Input("label", options=list(LABELS), default="old", optional=True, advanced=True,
                               tooltip="Noise level that the weak model is told on the way back. old: where it goes, "
                               "as the paper's code has it; new: where it is. Nearly the same."),
            ],
            outputs=[io.Sampler.Output(tooltip="The reflecting sampler. Goes to SamplerCustom.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, roles=None, start_percent=0.0, end_percent=0.5):
        """`roles` is here because ComfyUI always passes a DynamicCombo; its own check of that input is what counts."""
        try:
            StepWindow(start_percent, end_percent)
        except ValueError as error:
            return f"W2SD Reflection: {error}"
        return True

    @classmethod
    def execute(
        cls, sampler, roles, start_percent=0.0, end_percent=0.5, strength=1.0, every_n=1, label="old"
    ) -> io.NodeOutput:
        chosen = ROLES[roles["roles"]]({key: value for key, value in roles.items() if key != "roles"})
        reflection = Reflection(StepWindow(start_percent, end_percent), strength, every_n, label)
        node_id = getattr(cls.hidden, "unique_id", None)
        reflecting = host.reflecting_sampler(sampler, chosen, reflection, node_id)
        host.show_text("each reflected step evaluates the model once more as strong and once more as weak", node_id)
        return io.NodeOutput(reflecting)


def _lora_roles(values: dict) -> LoraRoles:
    return LoraRoles(values["lora_name"], host.load_lora(values["lora_name"]), values["strong_strength"],
                     values["weak_strength"])  # fmt: skip


ROLES = {
    "cfg": lambda values: CfgRoles(values["strong_cfg"], values["weak_cfg"]),
    "lora": _lora_roles,
    "prompt": lambda values: PromptRoles(values["weak_prompt"], values.get("strong_prompt")),
    "model": lambda values: ModelRoles(values["weak_model"], values.get("strong_model")),
}


def roles_input():
    """Who is strong and who is weak, each pair with its own widgets."""
    return io.DynamicCombo.Input(
        "roles",
        options=[
            io.DynamicCombo.Option("cfg", [
                io.Float.Input("strong_cfg", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Guidance of the strong model. 0: that of the sampler node."),
                io.Float.Input("weak_cfg", default=1.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Guidance of the weak model. 1 leaves the negative prompt out, one evaluation "
                               "in place of two."),
            ]),
            io.DynamicCombo.Option("lora", [
                io.Combo.Input("lora_name", options=host.lora_files(),
                               tooltip="A LoRA for this model. It is added beside the weights, in the reflection "
                               "alone."),
                io.Float.Input("strong_strength", default=0.5, min=-10.0, max=10.0, step=0.05,
                               tooltip="Strength of the LoRA in the strong model; 0.3 to 0.8 typically."),
                io.Float.Input("weak_strength", default=-0.5, min=-10.0, max=10.0, step=0.05,
                               tooltip="Strength of the LoRA in the weak model; 0 or the negative of the strong one."),
            ]),
            io.DynamicCombo.Option("prompt", [
                io.Conditioning.Input("weak_prompt", tooltip="Positive prompt of the weak model, a plain one."),
                io.Conditioning.Input("strong_prompt", optional=True, tooltip="Positive prompt of the strong model. "
                                      "Without it: that of the sampler node."),
            ]),
            io.DynamicCombo.Option("model", [
                io.Model.Input("weak_model", tooltip="The weak model, loaded by a node of its own; it stays in memory "
                               "beside the other."),
                io.Model.Input("strong_model", optional=True,
                               tooltip="The strong model. Without it: that of the sampler node."),
            ]),
        ],
        tooltip="Who is strong and who is weak. cfg: two guidance strengths; lora: a LoRA at two strengths; prompt: "
        "two prompts; model: two models.",
    )  # fmt: skip
