"""What one forward of a model holds at its peak, from sizes alone: ComfyUI's own code runs on tensors without memory.

No weight is read, nothing goes to a GPU, and no family needs a formula. Wan 14B takes 0.8 s of one core. Attention
counts as a kernel that keeps no scores. Source of how conditions reach the model: comfy/samplers.py and
comfy/model_base.py of ComfyUI 0.30.0.
"""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ..measure.alive import AliveBytes
from ..quant.fit import Scratch

Shape = tuple[int, ...]

TEXT_LAYERS = (  # the first that a network has takes the text in
    "text_embedding.0", "txt_in.input_embedder", "caption_projection.linear_1", "patch_embed.text_proj", "t5_yproj",
    "text_embeddings.in_layer", "condition_proj", "txt_in", "cap_embedder.1", "blocks.0.cross_attn.k_proj",
    "blocks.block0.blocks.1.block.attn.to_k.0",
)  # fmt: skip
TEXT_TOKENS = 512  # what Wan's encoder pads to; others have 128 to 512
POOLED = 768  # width of CLIP's pooled text, which HunyuanVideo and Flux take beside


@dataclass(frozen=True)
class DryForward:
    """peak: bytes above weights and inputs    rows: the most that a linear layer sees: tokens of all prompts
    scores: bytes that the largest attention call would take if a kernel wrote its scores down
    """

    peak: int
    rows: int
    scores: int


def dry_forward(model, shapes: tuple[Shape, ...], prompts: int, dtype: torch.dtype, scratch: Mapping[str, Scratch],
                positive: list | None = None, text: int = TEXT_TOKENS) -> DryForward:  # fmt: skip
    """shapes: of the latents, the video first    prompts: evaluated at once    dtype: that the model computes in
    scratch: what linear layers take besides input and output, by name; absent: nothing
    positive: a CONDITIONING; None: a text of `text` tokens and nothing else

    raises: ValueError when this model cannot be followed without its values; says why
    """
    notes = Notes(scratch)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            twin = twin_model(model.model, dtype, notes)
            x, sizes = latent_of(shapes, prompts)
            conds = conditions(twin, x, sizes, positive, text)
            sigma = torch.full((x.shape[0],), 0.5)
            options = {"optimized_attention_override": notes.attend, "cond_or_uncond": list(range(prompts))}
            with AliveBytes() as alive:
                twin.apply_model(x, sigma, transformer_options=options, **conds)
    except Exception as error:  # any model's code runs here, and some of it asks for values
        raise ValueError(f"{type(model.model.diffusion_model).__name__} cannot be followed by sizes alone "
                         f"({type(error).__name__})") from error  # fmt: skip
    return DryForward(alive.peak, notes.rows, notes.scores * dtype.itemsize)


class Notes:
    """What is written down on the way. Numbers are counts, not bytes."""

    def __init__(self, scratch: Mapping[str, Scratch]) -> None:
        self.scratch = scratch
        self.rows = self.scores = 0

    def attend(self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False,
               skip_output_reshape=False, **others) -> Tensor:  # fmt: skip
        """In place of ComfyUI's attention: the output, and one number for each row, as flash attention keeps."""
        rows, columns = (x.shape[2] if skip_reshape else x.shape[1] for x in (q, k))
        dim = v.shape[-1] if skip_reshape else v.shape[-1] // heads
        self.scores = max(self.scores, q.shape[0] * heads * rows * columns)
        out = q.new_empty((q.shape[0], heads, rows, dim) if skip_output_reshape else (q.shape[0], rows, heads * dim))
        torch.empty(q.shape[0], heads, rows, dtype=torch.float32)
        return out

    def linear(self, name: str, layer: nn.Module):
        """The forward of a linear layer that takes what its format takes."""
        takes = self.scratch.get(name, Scratch())

        def forward(x: Tensor) -> Tensor:
            self.rows = max(self.rows, x.numel() // x.shape[-1])
            torch.empty(takes.before, dtype=torch.uint8)
            during = torch.empty(takes.during + takes.per_input * x.numel(), dtype=torch.uint8)
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            out = F.linear(x, layer.weight.to(x.dtype), bias)
            del during
            return out

        return forward


def twin_model(base: nn.Module, dtype: torch.dtype, notes: Notes) -> nn.Module:
    """A BaseModel with the code of `base`, and a network without memory that computes in `dtype`."""
    twin = copy.copy(base)
    network = _twin(getattr(base.diffusion_model, "_orig_mod", base.diffusion_model), "", dtype, notes)
    if hasattr(network, "dtype"):
        network.dtype = dtype
    vars(twin)["_modules"] = {**base._modules, "diffusion_model": network}
    twin.manual_cast_dtype, twin.current_patcher = None, None
    return twin


def _twin(module: nn.Module, name: str, dtype: torch.dtype, notes: Notes) -> nn.Module:
    twin = copy.copy(module)
    parts = vars(twin)
    parts["_parameters"] = {key: _empty(value, dtype) for key, value in module._parameters.items()}
    parts["_buffers"] = {key: _empty(value, dtype) for key, value in module._buffers.items()}
    prefix = f"{name}." if name else ""
    parts["_modules"] = {key: child and _twin(child, prefix + key, dtype, notes)
                         for key, child in module._modules.items()}  # fmt: skip
    if hasattr(module, "comfy_cast_weights"):
        twin.comfy_cast_weights = True  # some layers compute in float32 whatever the model does
        twin.weight_function, twin.bias_function = [], []
    if hasattr(module, "in_features") and hasattr(module, "out_features") and module.weight is not None:
        parts["forward"] = notes.linear(name, twin)
    return twin


def _empty(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    floats = isinstance(tensor, QuantizedTensor) or tensor.is_floating_point()
    return torch.empty(tuple(tensor.shape), dtype=dtype if floats else tensor.dtype)


def latent_of(shapes: tuple[Shape, ...], prompts: int) -> tuple[Tensor, list | None]:
    """The latents as the sampler has them: several in one flat tensor, with their shapes."""
    parts = [torch.empty(prompts * shape[0], *shape[1:]) for shape in shapes]
    return (parts[0], None) if len(parts) == 1 else comfy.utils.pack_latents(parts)


def conditions(model: nn.Module, x: Tensor, sizes: list | None, positive: list | None, text: int) -> dict:
    """Keyword arguments of `apply_model` for all rows of `x`."""
    given = dict(positive[0][1]) if positive else {"pooled_output": torch.empty(1, POOLED), "guidance": 3.5}
    given["cross_attn"] = positive[0][0] if positive else torch.empty(1, text, text_width(model.diffusion_model))
    given |= {"noise": x[:1], "device": x.device, "prompt_type": "positive"}
    given |= {"latent_shapes": sizes} if sizes else {}
    given = {"width": x.shape[-1] * 8, "height": x.shape[-2] * 8} | given
    given.pop("attention_mask", None)  # models count its ones; without it all of the text counts, which is the most
    conds = {name: cond.process_cond(batch_size=x.shape[0], area=None).cond
             for name, cond in model.extra_conds(**given).items()}  # fmt: skip
    if "attention_mask" in inspect.signature(model.diffusion_model.forward).parameters:
        conds.setdefault("attention_mask", None)
    return conds


def text_width(network: nn.Module) -> int:
    """Channels of the text that a network takes in. raises: ValueError"""
    for name in TEXT_LAYERS:
        layer = network
        for part in name.split("."):
            layer = getattr(layer, part, None) if layer is not None else None
        if hasattr(layer, "in_features"):
            return layer.in_features
    raise ValueError("the width of its text is not known")
