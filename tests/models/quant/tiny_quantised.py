"""Tiny quantised models, and dense ones with the very weights that they decode to: what both compute must be equal."""
# N outputs   K inputs

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from interspatial.models.quant.format import FORMATS, Coded, dense
from interspatial.models.quant.recipe import Choice
from interspatial.models.quant.weights_file import layer_tensors
from interspatial.tests.models.tinies import noise
from interspatial.tests.models.tiny_dits import WAN

LAYERS = ("self_attn.q", "self_attn.o", "cross_attn.v", "ffn.0")
SIZES = {key: WAN[key] for key in ("text_dim", "freq_dim")}   # which ComfyUI reads from the metadata of a Wan file


def network_of(model) -> torch.nn.Module:
    """The diffusion model of a MODEL."""
    return model.model.diffusion_model


def encoded(network: torch.nn.Module, choice: str = "vidit_q 4") -> dict[str, Coded]:
    """All layers of a network that formats are for, in one format."""
    from interspatial.models.host.quant_trial import linear_layers

    chosen = Choice.parse(choice)
    return {name: FORMATS[chosen.format].encode(layer.weight.detach().float(), chosen.bits)
            for name, layer in linear_layers(network).items()}  # fmt: skip


def write(path: Path, network: torch.nn.Module, coded: Mapping[str, Coded], act_bits: int, sizes=None) -> str:
    """A file of a network with these layers quantised. sizes: what ComfyUI reads from its metadata"""
    from comfy.utils import save_torch_file

    tensors = {key: x.clone() for key, x in network.state_dict().items()}
    for layer, weight in coded.items():
        del tensors[f"{layer}.weight"]
        tensors.update(layer_tensors(layer, weight, act_bits))
    save_torch_file(tensors, str(path), {"config": json.dumps({"transformer": sizes})} if sizes else None)
    return str(path)


def loaded(path: Path, model, choice: str, act_bits: int = 16, sizes=SIZES):
    """A tiny MODEL in a format, as the pack's loader gives it."""
    from interspatial.models.host.quant_loading import load_quantised_model

    with torch.inference_mode():
        return load_quantised_model(write(path, network_of(model), encoded(network_of(model), choice), act_bits, sizes))


@contextmanager
def decoded(model, coded: Mapping[str, Coded]) -> Iterator:
    """Within, a dense MODEL has the weights that these decode to."""
    weights = {name: network_of(model).get_submodule(name).weight for name in coded}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    unload()   # no MODEL may hold weights of its own while those below it change
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(dense(coded[name]))
        yield model
    finally:
        unload()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def lora(network: torch.nn.Module, seed: int = 0, rank: int = 3, size: float = 0.05) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file for some layers of each block, with an alpha of its own."""
    made = {}
    for i, block in enumerate(network.blocks):
        for j, name in enumerate(LAYERS):
            outputs, inputs = block.get_submodule(name).weight.shape
            key, first = f"diffusion_model.blocks.{i}.{name}", 1000 * seed + 100 * i + 10 * j
            made[f"{key}.lora_A.weight"] = size * noise(rank, inputs, seed=first)
            made[f"{key}.lora_B.weight"] = size * noise(outputs, rank, seed=first + 1)
            made[f"{key}.alpha"] = torch.tensor(6.0)
    return made


def with_lora(model, tensors: Mapping[str, torch.Tensor], strength: float = 1.0):
    """MODEL with a LoRA, through the function of ComfyUI's LoRA loaders."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, dict(tensors), strength, 0.0)[0]


def codes(model) -> dict[str, torch.Tensor]:
    """Every tensor of the layers' weights."""
    tensors = network_of(model).state_dict()
    return {name: x.clone() for name, x in tensors.items() if ".weight" in name}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def unload() -> None:
    """All MODELs give their weights back, as ComfyUI has them do between two workflows."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.unload_all_models()
