"""Evaluations of a diffusion model, kept and made again; and single blocks of it, fed with what came in then.

A block is trained by itself: only its caught inputs and outputs are in memory, on the CPU, the video's in 16 bits.
Source: comfy/ops.py, comfy/model_management.py and comfy/ldm/modules/attention.py of ComfyUI 0.30.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.func import functional_call

from ..block_visits import covered

OPTIONS = "transformer_options"  # handed on without the tensors being looked for in it
PLAIN = ("sigmas", "sample_sigmas", "cond_or_uncond", "uuids")  # what is kept of it: the network is what learns, not
# what other nodes have put on it
ATTENTION = "optimized_attention_override"


@dataclass(frozen=True)
class Evaluation:
    """Arguments of one evaluation of a module, tensors on the CPU."""

    args: tuple
    kwargs: dict


@dataclass(frozen=True)
class BlockCall:
    """inputs: of a block    outputs: what it should give, a tensor or a tuple of them
    power: mean square of what the block adds to its input in full precision
    """

    inputs: Evaluation
    outputs: Tensor | tuple
    power: float


class _SeenError(Exception):
    """No failure: ends an evaluation of the model where a block has been seen."""


def recorded(network: nn.Module, run: Callable[[], object]) -> list[Evaluation]:
    """The evaluations of a diffusion model while `run` samples with it."""
    found: list[Evaluation] = []

    def cover(forward: Callable) -> Callable:
        def covering(*args, **kwargs):
            kept = _mapped(kwargs, _kept)
            if OPTIONS in kept:
                kept[OPTIONS] = {key: x for key, x in kept[OPTIONS].items() if key in PLAIN}
            found.append(Evaluation(_mapped(args, _kept), kept))
            return forward(*args, **kwargs)

        return covering

    with covered([(network, cover)]):
        run()
    return found


@torch.inference_mode()
def block_call(teacher: nn.Module, student: nn.Module, name: str, evaluation: Evaluation, device) -> BlockCall:
    """A call of block `name` in an evaluation: inputs as the student's blocks before it give them, outputs as the
    teacher has them.
    """
    ours, outputs = _seen(teacher, name, evaluation, device, whole=True)
    inputs, _ = (ours, None) if student is teacher else _seen(student, name, evaluation, device, whole=False)
    power = _power(ours, outputs)
    shapes = {x.shape for x in _tensors(outputs)}

    def packed(x: Tensor) -> Tensor:
        return _half(x) if x.shape in shapes else _kept(x)

    return BlockCall(Evaluation(_mapped(inputs.args, packed), _mapped(inputs.kwargs, packed)),
                     _mapped(outputs, packed), power)  # fmt: skip


class TrainableBlock:
    """A block whose layers of these names compute with something else, with gradients through all of it."""

    def __init__(self, network: nn.Module, name: str, layers: Mapping[str, Callable[[Tensor], Tensor]], device) -> None:
        """layers: by their names in the network"""
        self._block, self._device = network.get_submodule(name), device
        self._covers = [(network.get_submodule(layer), _instead(forward)) for layer, forward in layers.items()]
        ours = tuple(f"{layer.removeprefix(name + '.')}." for layer in layers)
        # tensors that were made in inference mode cannot be part of a graph; copies can
        self._tensors = {key: x.detach().to(device, copy=True) for key, x in self._block.named_parameters()
                         if not key.startswith(ours) and not isinstance(x, QuantizedTensor)}  # fmt: skip

    def error(self, call: BlockCall) -> Tensor:
        """Mean squared error of the outputs, over the power of what the block adds."""
        inputs = on_device(call.inputs, self._device)
        kwargs = dict(inputs.kwargs)
        if OPTIONS in kwargs:
            kwargs[OPTIONS] = {**kwargs[OPTIONS], ATTENTION: _plain_attention}
        with covered(self._covers):
            found = functional_call(self._block, self._tensors, inputs.args, kwargs)
        pairs = zip(_tensors(found), _tensors(call.outputs), strict=True)
        errors = [(x.float() - y.to(self._device).float()).square().mean() for x, y in pairs]
        return torch.stack(errors).mean() / call.power


@contextmanager
def learning() -> Iterator[None]:
    """Gradients are on, and ComfyUI takes operations that have them."""
    manage = comfy.model_management
    before, manage.in_training = manage.in_training, True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        manage.in_training = before


def on_device(evaluation: Evaluation, device) -> Evaluation:
    """Copies on `device`; what was packed into 16 bits comes back in the dtype it had."""

    def moved(x: Tensor | _Packed) -> Tensor:
        return x.unpacked(device) if isinstance(x, _Packed) else x.to(device, copy=True)

    return Evaluation(_mapped(evaluation.args, moved), _mapped(evaluation.kwargs, moved))


@dataclass(frozen=True)
class _Packed:
    """A tensor in 16 bits. dtype: of the original"""

    tensor: Tensor
    dtype: torch.dtype

    def unpacked(self, device) -> Tensor:
        return self.tensor.to(device, self.dtype, copy=True)

    def to(self, device) -> Tensor:
        return self.unpacked(device)


def _seen(network: nn.Module, name: str, evaluation: Evaluation, device, whole: bool) -> tuple[Evaluation, object]:
    """Inputs of a block, and its outputs where it is run. What comes is copied first: some blocks write into it."""
    seen: list = []

    def cover(forward: Callable) -> Callable:
        def covering(*args, **kwargs):
            seen.append(Evaluation(_mapped(args, torch.clone), _mapped(kwargs, torch.clone)))
            seen.append(forward(*args, **kwargs) if whole else None)
            raise _SeenError

        return covering

    given = on_device(evaluation, device)
    with covered([(network.get_submodule(name), cover)]):
        try:
            network(*given.args, **given.kwargs)
        except _SeenError:
            return tuple(seen)
    raise ValueError(f"block {name} did not run when the model was evaluated")


def _power(inputs: Evaluation, outputs: Tensor | tuple) -> float:
    streams = list(_tensors((inputs.args, inputs.kwargs)))
    added = []
    for y in _tensors(outputs):
        x = next((x for x in streams if x.shape == y.shape), None)
        added.append((y.float() - (y.float().mean() if x is None else x.float())).square().mean())
    return max(float(torch.stack(added).mean()), 1e-12)


def _instead(forward: Callable[[Tensor], Tensor]) -> Callable:
    return lambda _: forward


def _plain_attention(_, *args, **kwargs) -> Tensor:
    """In place of kernels that have no gradients."""
    return attention_pytorch(*args, **kwargs)


def _half(x: Tensor) -> _Packed:
    """float16 is the more exact one; bfloat16 where the range asks for it."""
    if x.element_size() <= 2:
        return _Packed(x.detach().cpu(), x.dtype)
    half = x.detach().half()
    return _Packed((half if half.isfinite().all() else x.detach().bfloat16()).cpu(), x.dtype)


def _kept(x: Tensor) -> Tensor:
    return x.detach().to("cpu", copy=True)


def _mapped(value, change: Callable):
    """The same nest of tuples, lists and dicts with changed tensors."""
    if isinstance(value, (Tensor, _Packed)):
        return change(value)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_mapped(x, change) for x in value)
    if isinstance(value, dict):
        return {key: x if key == OPTIONS else _mapped(x, change) for key, x in value.items()}
    return value


def _tensors(value) -> Iterator[Tensor]:
    """All tensors in a nest."""
    if isinstance(value, (Tensor, _Packed)):
        yield value
    elif isinstance(value, (tuple, list)):
        for x in value:
            yield from _tensors(x)
    elif isinstance(value, dict):
        for key, x in value.items():
            yield from () if key == OPTIONS else _tensors(x)
