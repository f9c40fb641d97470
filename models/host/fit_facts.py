"""What ComfyUI knows of a run's memory before it runs: weights as they lie, its own estimates, the VAE, the card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..cache.plan import plans_of
from ..families import bare
from ..quant.fit import CONTROL, Decoding, Fit, Need, Stored, recipe_for, scratch_of, weights_of
from ..quant.format import FORMATS
from ..quant.layers import quantised_layers
from ..quant.recipe import Choice, Recipe
from .dry_forward import DryForward, dry_forward
from .quant_layouts import is_coded
from .rehearsal import look_ahead, sigmas_of

Shape = tuple[int, ...]
TILE, TILE_FRAMES = 512, 64  # pixels and frames: defaults of ComfyUI's VAE Decode (Tiled)
STEPS = 20  # of the schedule that a cache is asked about; its history does not grow with them


@dataclass(frozen=True)
class Question:
    """What is asked. card: bytes, 0 for this machine's    prompts: evaluated at once    act_bits: 8 or 16
    recipe: how to quantise, one choice for all layers or for each; None: as the model is
    positive: a CONDITIONING, for text and images
    """

    name: str
    recipe: Recipe | Choice | None = None
    card: int = 0
    prompts: int = 2
    act_bits: int = 8
    positive: list | None = None


def fit_of(model, latent: dict, question: Question, vae=None) -> Fit:
    """model: MODEL    latent: LATENT    raises: ValueError"""
    card = question.card or this_card()
    stored = stored_weights(bare(model.get_model_object("diffusion_model")))
    if not stored.shapes:
        raise ValueError("the model has no layers that weight formats are for. A video model is accepted.")
    sigmas = sigmas_of(model, STEPS, "euler", "simple")
    shapes = look_ahead(model, sigmas, "euler", False, latent).shapes
    dtype, reserve = compute_dtype(model), comfy.model_management.extra_reserved_memory()
    core, notes = core_estimate(model, shapes, question.prompts, dtype), []
    history = history_of(model, sigmas, latent, question.prompts, notes)
    forwards: dict[tuple, DryForward | None] = {}

    def need(name: str, recipe: Recipe | None, act_bits: int) -> Need:
        coded = stored.coded | frozenset(recipe.layers if recipe else ())
        key = (coded, act_bits if coded else 0)
        if key not in forwards:
            scratch = scratch_of(stored, coded, act_bits, dtype.itemsize)
            forwards[key] = _followed(model, shapes, question, dtype, scratch, notes)
        activations = core if forwards[key] is None else forwards[key].peak
        return Need(name, weights_of(stored, recipe), activations, question.prompts, history, reserve)

    recipe = recipe_for(stored, question.recipe) if isinstance(question.recipe, Choice) else question.recipe
    chosen = need(question.name, recipe, stored.act_bits if recipe is None else question.act_bits)
    others = [need(choice.label, recipe_for(stored, choice), question.act_bits) for choice in choices()
              if choice != question.recipe]
    frames = shapes[0][2] if len(shapes[0]) == 5 else 1
    seen = next((forward for forward in forwards.values() if forward), DryForward(0, 0, 0))
    decoding = vae and decoding_of(vae, shapes[0], reserve)
    notes = tuple(dict.fromkeys(notes))
    return Fit(card, chosen, tuple(others), frames, core, seen.scores, seen.rows, decoding, notes)


def choices() -> list[Choice]:
    """Every format and width but the control, most bits first."""
    found = [Choice(name, bits) for name, form in FORMATS.items() if name != CONTROL for bits in form.widths]
    return sorted(found, key=lambda choice: -choice.bits)


def _followed(model, shapes, question: Question, dtype, scratch: Mapping, notes: list[str]) -> DryForward | None:
    comfy.model_management.throw_exception_if_processing_interrupted()
    try:
        return dry_forward(model, shapes, question.prompts, dtype, scratch, question.positive)
    except ValueError as error:
        hint = "" if question.positive else ", connecting positive may help"
        notes.append(f"activations are ComfyUI's own estimate: {error}{hint}")
        return None


def this_card() -> int:
    """Bytes of this machine's device. raises: ValueError where there is none but the CPU"""
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        raise ValueError("this machine has no GPU to measure against. State the memory of a card in card_gb, 24 for "
                         "example.")  # fmt: skip
    return comfy.model_management.get_total_memory(device)


def compute_dtype(model) -> torch.dtype:
    """What the model computes in; on a machine without a GPU, 16 bits as it would on one."""
    dtype = model.model.get_dtype_inference()
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    return torch.bfloat16 if on_cpu and dtype == torch.float32 else dtype


def stored_weights(network: nn.Module) -> Stored:
    """The weights of a diffusion model, as they lie in memory or file."""
    linear = {f"{name}.weight": tuple(layer.weight.shape) for name, layer in network.named_modules()
              if hasattr(layer, "in_features") and isinstance(getattr(layer, "weight", None), Tensor)}  # fmt: skip
    shapes = quantised_layers(linear.items())
    weights, others, coded, bits = {}, {}, set(), 8
    for key, tensor in _tensors(network):
        layer = key.removesuffix(".weight")
        if layer in shapes and key.endswith(".weight"):
            weights[layer] = nbytes(tensor)
            if isinstance(tensor, QuantizedTensor):
                coded.add(layer)
                bits = tensor._params.act_bits if is_coded(tensor) else bits
        else:
            module = key.rpartition(".")[0]
            others[module] = others.get(module, 0) + nbytes(tensor)
    return Stored(shapes, weights, others, frozenset(coded), bits)


def _tensors(network: nn.Module):
    yield from network.named_parameters()
    yield from network.named_buffers()


def nbytes(tensor: Tensor) -> int:
    """Bytes of a weight, of all tensors of a quantised one."""
    if isinstance(tensor, QuantizedTensor):
        return sum(part.nbytes for part in tensor.state_dict("").values())
    return tensor.nbytes


def core_estimate(model, shapes: tuple[Shape, ...], prompts: int, dtype: torch.dtype) -> int:
    """ComfyUI's estimate of one evaluation, as it is on a GPU with attention that keeps no scores.

    Source: BaseModel.memory_required; on a CPU that counts on attention which keeps them.
    """
    first, *_ = shapes
    batch = (prompts * first[0], *first[1:])
    if comfy.model_management.get_torch_device().type != "cpu":
        return int(model.memory_required(batch))
    area = batch[0] * math.prod(batch[2:])
    return int(area * dtype.itemsize * 0.01 * model.model.memory_usage_factor * 1024 * 1024)


def history_of(model, sigmas: Tensor, latent: dict, prompts: int, notes: list[str]) -> int:
    """Bytes that the step caches on a MODEL keep."""
    found = [plan.history(prompts) for plan in plans_of(model, sigmas, "euler", latent)]
    if None in found:
        notes.append("what a step cache keeps is not known for this model and not counted")
    return sum(size or 0 for size in found)


def decoding_of(vae, shape: Shape, reserve: int) -> Decoding:
    """Of a VAE and a latent, by ComfyUI's estimates; a tile is as large as VAE Decode (Tiled) makes it by default."""
    across, along = vae.spacial_compression_decode(), vae.temporal_compression_decode()
    tile = [*shape[:2], *(min(size, max(1, TILE // across)) for size in shape[-2:])]
    if len(shape) == 5:
        tile.insert(2, min(shape[2], max(2, TILE_FRAMES // along) if along else shape[2]))
    whole, tiled = (int(vae.memory_used_decode(size, vae.vae_dtype)) for size in (shape, tuple(tile)))
    weights = sum(nbytes(part) for part in vae.first_stage_model.parameters())
    return Decoding(weights, whole, tiled, reserve)
