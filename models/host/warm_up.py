"""What the patches of a MODEL will launch on its device, as parts of a warm-up; where measured tiles are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ...kernels import triton_device
from ...kernels.tuned_tiles import KNOWN
from ..attention import SparseAttention
from ..cache import StepCache
from ..call import Packing
from ..families import Inputs, bare
from ..layout import TokenLayout, arrange
from ..quant.format import FORMATS, Coded
from ..report import Report
from ..run import Run
from ..schedule import Schedule
from ..warm_up import Layer, Seen, Task, attention, idle, products, sums
from .chain import FORWARD, RUN
from .dry_forward import TEXT_TOKENS, Notes, conditions, latent_of, twin_model
from .hooks import KEY, Patch, patches_of
from .quant_layouts import coded_of, is_coded
from .rehearsal import look_ahead, sigmas_of
from .services import family_of_model

Shape = tuple[int, ...]
FRAMES, SIDE = 3, 32  # of the latent that a model is followed on where none is given
NEED = 2 << 30  # bytes: tensors of 64 MB at head dim 128, ten of them and what searches gather


def remember_tiles() -> None:
    """Let measured tiles outlive the session, in ComfyUI's folder of the user. Reads and writes nothing."""
    KNOWN.remember_in(Path(folder_paths.get_user_directory()) / "interspatial" / "tuned_tiles.json")


def warm_up_tasks(model, latent: dict | None = None) -> list[Task]:
    """One for each patch with kernels, and for each kind of quantised layer. latent: a LATENT of the run"""
    device, dtype = model.load_device, model.model.get_dtype_inference()
    if reason := why_not(device):
        return [idle("kernels", reason)]
    comfy.model_management.free_memory(NEED, device)
    sparse = [patch for patch in patches_of(model) if isinstance(patch.method, SparseAttention)]
    caches = [patch for patch in patches_of(model) if isinstance(patch.method, StepCache)]
    tasks = [*_attention(model, sparse, dtype, device, latent)] if sparse else []
    tasks += [sums(_name(patch), patch.method, dtype, device) for patch in caches]
    tasks += [products(name, layer, dtype, device) for name, layer in _layers(model, device).items()]
    reason = "no patch on the model has kernels of its own, and its weights are not in a format of this pack"
    return tasks or [idle("kernels", reason)]


def why_not(device: torch.device) -> str | None:
    """Why no kernel would be compiled for a device, or None."""
    if device.type == "cpu":
        return "the model runs on the CPU, for which nothing is compiled"
    return triton_device.why_not(device)


def _name(patch: Patch) -> str:
    return f"{patch.card.name} ({patch.method.method.label})"


def _attention(model, patches: list[Patch], dtype: torch.dtype, device: torch.device, latent) -> Iterator[Task]:
    try:
        seen = look(model, dtype, latent)
    except ValueError as error:
        yield from (idle(_name(patch), str(error)) for patch in patches)
        return
    for patch in patches:
        yield from attention(_name(patch), patch.method, seen, device)


def look(model, dtype: torch.dtype, latent: dict | None = None) -> Seen:
    """The video's self attention of a patched MODEL, from a forward without memory or weights; where that needs values,
    from what the network says of itself.

    latent: a LATENT of the run; None: a short one
    raises: ValueError when neither tells
    """
    if latent is None:
        space = model.model.latent_format
        shapes: tuple[Shape, ...] = ((1, space.latent_channels, *(FRAMES, SIDE, SIDE)[-space.latent_dimensions :]),)
    else:
        shapes = look_ahead(model, sigmas_of(model, 1, "euler", "simple"), "euler", False, latent).shapes
    watch = _Watch()
    with suppress(Exception):  # any model's code runs here, and some of it asks for values
        _follow(model, shapes, dtype, watch)
    if watch.seen is None:
        return _by_name(model, shapes, dtype, latent is not None)
    family, layout, stacks, heads, dim, kind = watch.seen
    return Seen(layout, latent is not None, heads, dim, kind, family, stacks)


def _by_name(model, shapes: tuple[Shape, ...], dtype: torch.dtype, known: bool) -> Seen:
    """From the names that networks have for it. raises: ValueError"""
    network, family = bare(model.get_model_object("diffusion_model")), family_of_model(model)
    stacks = {} if family is None else family.stacks(network)
    for module in [part for name in stacks for part in getattr(network, name).modules()]:
        heads = next((n for name in ("num_heads", "heads") if isinstance(n := getattr(module, name, None), int)), 0)
        if heads and (dim := _head_dim(module, heads)):
            break
    else:
        raise ValueError(f"{type(network).__name__} cannot be followed by sizes alone, and does not say what its heads "
                         f"are like{'' if known else '. Connect the latent that will be sampled'}")  # fmt: skip
    video = shapes[0] if len(shapes[0]) == 5 else (*shapes[0][:2], 1, *shapes[0][2:])
    layout = None
    with suppress(Exception):  # as above
        layout = family.expect(Inputs(network, video, TEXT_TOKENS, shapes[1] if len(shapes) > 1 else None))
    if not isinstance(layout, TokenLayout):
        known, layout = False, arrange([("text", TEXT_TOKENS), ("video", (FRAMES, SIDE, SIDE))])
    return Seen(layout, known, heads, dim, dtype, family, stacks)


def _head_dim(module, heads: int) -> int:
    """Of an attention module or block, 0 where it cannot be told."""
    for name in ("head_dim", "dim_head"):
        if isinstance(dim := getattr(module, name, None), int):
            return dim
    width = getattr(module, "hidden_size", None) or getattr(getattr(module, "q", None), "out_features", 0)
    return width // heads


class _Watch(Notes):
    """Notes the first attention call that the pack would take."""

    def __init__(self) -> None:
        super().__init__({})
        self.seen: tuple | None = None

    def attend(self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False,
               skip_output_reshape=False, **others) -> Tensor:  # fmt: skip
        forward = (others.get("transformer_options") or {}).get(FORWARD)
        if self.seen is None and forward is not None:
            found = forward.explain(*Packing(heads, skip_reshape, skip_output_reshape).sizes(q, k))
            if isinstance(found, TokenLayout):
                dim = q.shape[-1] if skip_reshape else q.shape[-1] // heads
                self.seen = forward.family, found, forward.stacks, heads, dim, q.dtype
        return super().attend(func, q, k, v, heads, mask, attn_precision, skip_reshape, skip_output_reshape, **others)


def _follow(model, shapes: tuple[Shape, ...], dtype: torch.dtype, watch: _Watch) -> None:
    """One forward on tensors without memory, through the wrapper that tells the layout."""
    run = Run(Schedule([1.0, 0.0], lambda percent: 1.0 - percent), Report())
    run.begin_call(1.0)
    wrappers = {WrappersMP.APPLY_MODEL: {KEY: model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)}}
    options = {"optimized_attention_override": watch.attend, "cond_or_uncond": [0], RUN: run, "wrappers": wrappers}
    with FakeTensorMode(allow_non_fake_inputs=True):
        twin = twin_model(model.model, dtype, watch)
        x, sizes = latent_of(shapes, 1)
        conds = conditions(twin, x, sizes, None, TEXT_TOKENS)
        twin.apply_model(x, torch.full((x.shape[0],), 0.5), transformer_options=options, **conds)


def _layers(model, device: torch.device) -> dict[str, Layer]:
    """Each kind of quantised layer once: by format, bits, shape, basis and bias."""
    found: dict[str, Layer] = {}
    for module in bare(model.get_model_object("diffusion_model")).modules():
        weight = getattr(module, "weight", None)
        if not is_coded(weight):
            continue
        coded, bits = coded_of(weight), weight._params.act_bits
        basis = coded.basis
        parts = [name for name in ("mask", "turns", "order") if getattr(basis, name) is not None]
        biased = module.bias is not None
        words = [f"{FORMATS[coded.format].label} {coded.bits}-bit, {coded.shape[0]} x {coded.shape[1]}",
                 *parts, *(["bias"] if biased else []), f"activations {bits}-bit"]  # fmt: skip
        found.setdefault(", ".join(words), Layer(_bringer(weight, device), biased, bits))
    return found


def _bringer(weight, device: torch.device):
    def bring() -> Coded:
        return coded_of(weight.to(device=device))

    return bring
