"""Refining the quantised weights of one MODEL against another MODEL, in full precision, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType

import comfy.model_management
import torch
from torch import Tensor, nn

from ..block_visits import covered
from ..families import bare
from ..quant.format import Coded
from ..quant.layers import block_of_layer, natural
from ..quant.learned import LearnedLayer
from ..quant.linear import linear
from ..quant.refine import Effort, Refined, refine_block
from .block_replay import Evaluation, TrainableBlock, block_call, learning
from .quant_layouts import coded_of, is_coded
from .quant_trial import float_weight


def network_of(model) -> nn.Module:
    """The diffusion model of a MODEL."""
    return bare(model.get_model_object("diffusion_model"))


def coded_blocks(network: nn.Module) -> dict[str, list[str]]:
    """Names of the layers in this pack's formats, by block, in order."""
    found: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        place = block_of_layer(name)
        if place is not None and is_coded(getattr(module, "weight", None)):
            found.setdefault(f"{place[0]}.{place[1]}", []).append(name)
    return {block: found[block] for block in sorted(found, key=natural)}


def why_not_refined(teacher, student) -> str | None:
    """Why one MODEL cannot be refined against another, or None."""
    precise, coarse = network_of(teacher), network_of(student)
    if not coded_blocks(coarse):
        return "the file holds no layers in the formats of this pack"
    if coded_blocks(precise):
        return "the model is quantised itself"
    shapes = {name: tuple(x.shape) for name, x in precise.named_parameters()}
    for block in coded_blocks(coarse).values():
        for name in block:
            if shapes.get(f"{name}.weight") != tuple(coarse.get_submodule(name).weight.shape):
                return f"the file was made from another model: layer {name} has another shape, or is not there"
    return None


def refined_blocks(
    teacher, student, evaluations: Sequence[Evaluation], effort: Effort, tick: Callable[[], None],
    ready: Mapping[str, Refined] = MappingProxyType({}), dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> Iterator[tuple[str, Refined]]:  # fmt: skip
    """Each block's name and what became of it, in order. Outside of it the student is as it was.

    teacher, student: MODELs of the same network, for which `why_not_refined` is None
    evaluations: of the teacher, see `recorded`
    tick: called often; may raise the user's interrupt
    ready: blocks of an earlier run, which are taken as they are and not given again
    dtypes: that biases are kept in, by name of the layer
    """
    device = comfy.model_management.get_torch_device()
    precise, coarse = network_of(teacher), network_of(student)
    with ExitStack() as done:
        for block, names in coded_blocks(coarse).items():
            found = ready.get(block)
            if found is None:
                comfy.model_management.load_models_gpu([teacher, student])
                calls = []
                for evaluation in evaluations:
                    tick()
                    calls.append(block_call(precise, coarse, block, evaluation, device))
                with learning():
                    layers = {name: _learned(precise, coarse, name, effort, device) for name in names}
                    trained = TrainableBlock(coarse, block, layers, device)
                    found = refine_block(layers, lambda i, t=trained, c=calls: t.error(c[i]), len(calls), effort, tick)
                found = replace(found, biases={name: bias.to(dtypes.get(name, bias.dtype))
                                               for name, bias in found.biases.items()})  # fmt: skip
                yield block, found
            done.enter_context(covered(
                (coarse.get_submodule(name), _forward(found, name, device)) for name in names
            ))  # fmt: skip


def _learned(precise: nn.Module, coarse: nn.Module, name: str, effort: Effort, device) -> LearnedLayer:
    layer = coarse.get_submodule(name)
    bias = None if layer.bias is None else layer.bias.detach().to(device, copy=True)
    weight = float_weight(precise.get_submodule(name), device)
    return LearnedLayer(_copied(coded_of(layer.weight), device), weight, bias, effort.candidates)


def _copied(coded: Coded, device) -> Coded:
    """The same on `device`, of tensors that may be part of a graph."""

    def copy(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, copy=True)

    basis = coded.basis
    basis = replace(basis, mask=copy(basis.mask), turns=copy(basis.turns), order=copy(basis.order))
    return replace(coded, codes=copy(coded.codes), scale=copy(coded.scale), table=copy(coded.table), basis=basis)


def _forward(found: Refined, name: str, device) -> Callable:
    coded, bias = _copied(found.weights[name], device), found.biases.get(name)
    bias = None if bias is None else bias.to(device)
    return lambda _: lambda x: linear(x, coded, bias, 16)
