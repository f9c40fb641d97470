"""How quantised layers lie in a safetensors file: the tensors of each, and a marker that says how to read them.

The marker is ComfyUI's own: a uint8 tensor `<layer>.comfy_quant` that holds JSON with the format. ViDiT-Q at 8 bits
without a mask is written as ComfyUI's `int8_tensorwise`, so such a file loads without this pack.
"""
from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .basis import Basis
from .format import ACT_BITS, FORMATS, Coded

MARKER = "comfy_quant"
OURS = "interspatial_"
CORE_INT8 = "int8_tensorwise"
ALIGNED = 64  # bytes, as torch has its own tensors: products of others differ in the last bit
FULL_PRECISION = "full_precision_matrix_mult"  # ComfyUI's word for activations that are left as they are


def as_core(coded: Coded) -> bool:
    """True when ComfyUI itself has this format."""
    return coded.format == "vidit_q" and coded.bits == 8 and coded.basis.plain and coded.table is None


def conf_of(coded: Coded, act_bits: int) -> dict:
    """What the marker of a layer says."""
    if as_core(coded):
        rotated = coded.basis.block > 1
        conf = {"format": CORE_INT8, "convrot": rotated}
        conf |= {"convrot_groupsize": coded.basis.block} if rotated else {}
        return conf | ({FULL_PRECISION: True} if act_bits == 16 else {})
    return {"format": OURS + coded.format, "bits": coded.bits, "shape": list(coded.shape), "block": coded.basis.block,
            "act_bits": act_bits}  # fmt: skip


def layer_tensors(layer: str, coded: Coded, act_bits: int) -> dict[str, Tensor]:
    """All tensors of a layer by their names in the file, without its bias."""
    named = {f"{layer}.weight{suffix}": x.contiguous() for suffix, x in coded.tensors().items()}
    return named | {f"{layer}.{MARKER}": as_marker(conf_of(coded, act_bits), coded.nbytes)}


def as_marker(conf: Mapping, beside: int = 0) -> Tensor:
    """JSON as a uint8 tensor. beside: bytes that lie before it in a file; spaces at its end bring both to a multiple of
    ALIGNED, so that what follows can be used as it is mapped
    """
    text = json.dumps(conf).encode()
    return torch.frombuffer(bytearray(text + b" " * (-(len(text) + beside) % ALIGNED)), dtype=torch.uint8)


def read_marker(layer: str, marker: Tensor) -> dict:
    """raises: ValueError for a marker that is no JSON object"""
    try:
        conf = json.loads(marker.cpu().numpy().tobytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"The marker of layer {layer} is no JSON: {error}. Write the file anew.") from error
    if not isinstance(conf, dict):
        raise ValueError(f"The marker of layer {layer} is {conf!r}; an object with a format is accepted.")
    return conf


def is_ours(conf: Mapping) -> bool:
    """True for a layer in one of this pack's formats."""
    return str(conf.get("format", "")).startswith(OURS)


def coded_layer(layer: str, conf: Mapping, tensors: Mapping[str, Tensor]) -> Coded:
    """The weight of a layer. tensors: by suffix, "" for the codes, as `Coded.tensors`

    raises: ValueError, with the layer, for an unknown format and for tensors that do not fit the marker
    """
    name, bits = conf["format"].removeprefix(OURS), conf.get("bits")
    if name not in FORMATS or bits not in FORMATS[name].widths:
        raise ValueError(
            f"Layer {layer} is kept as {name!r} with {bits} bits. Accepted: "
            + "; ".join(f"{n} with {', '.join(map(str, f.widths))}" for n, f in FORMATS.items()) + ". Update the pack, "
            "or write the file anew."
        )  # fmt: skip
    shape, block = conf.get("shape"), conf.get("block", 1)
    sizes = [*shape, block] if isinstance(shape, list) and len(shape) == 2 else [0]
    whole = all(type(size) is int and size > 0 for size in sizes)
    if conf.get("act_bits") not in ACT_BITS or not whole or "" not in tensors or "_scale" not in tensors:
        raise ValueError(f"Marker or tensors of layer {layer} are incomplete: {dict(conf)}. Write the file anew.")
    shape = tuple(shape)
    basis = Basis(block, tensors.get("_mask"), tensors.get("_turns"), tensors.get("_order"))
    coded = Coded(name, bits, shape, tensors[""], tensors["_scale"], tensors.get("_table"), basis)
    if reason := why_not_whole(coded):
        raise ValueError(f"Layer {layer} does not fit its marker ({name}, {bits} bits, {list(shape)}): {reason}. The "
                         "file is damaged or from another version; write it anew.")  # fmt: skip
    return coded


def why_not_whole(coded: Coded) -> str | None:
    """Why the tensors of a weight cannot be what its format writes, or None. Of values it reads the order's alone."""
    rows, columns = coded.shape
    if reason := FORMATS[coded.format].why_not(coded.shape, coded.bits):
        return reason
    wanted = ((rows, columns), torch.int8) if coded.bits == 8 else None
    if wanted and (tuple(coded.codes.shape), coded.codes.dtype) != wanted:
        return f"its codes are {coded.codes.dtype} {list(coded.codes.shape)}"
    if not wanted and (coded.codes.dtype != torch.uint8 or coded.codes.numel() * 8 != rows * columns * coded.bits):
        return f"its codes are {coded.codes.dtype} {list(coded.codes.shape)}"
    if tuple(coded.scale.shape) != (rows, 1) or not coded.scale.is_floating_point():
        return f"its scale is {coded.scale.dtype} {list(coded.scale.shape)}"
    return why_not_basis(coded.basis, columns) or FORMATS[coded.format].why_not_table(coded)


def why_not_basis(basis: Basis, columns: int) -> str | None:
    """The same, of what its basis is made of."""
    mask, turns, order = basis.mask, basis.turns, basis.order
    if columns % basis.block or 4 ** ((basis.block.bit_length() - 1) // 2) != basis.block:
        return f"its rotation block of {basis.block} is no power of 4, or does not divide {columns}"
    if mask is not None and (tuple(mask.shape) != (columns,) or not mask.is_floating_point()):
        return f"its mask is {mask.dtype} {list(mask.shape)}"
    if turns is not None:
        size = turns.shape[-1]
        if turns.ndim != 3 or turns.shape[1] != size or len(turns) * size != columns or not turns.is_floating_point():
            return f"its turns are {turns.dtype} {list(turns.shape)}"
    if order is not None and (order.dtype != torch.int32 or not _is_order(order, columns)):
        return f"its order is {order.dtype} {list(order.shape)}, or leaves channels out"
    return None


def _is_order(order: Tensor, columns: int) -> bool:
    return tuple(order.shape) == (columns,) and torch.equal(order.sort().values, torch.arange(columns).to(order))
