"""Launches of block attention over keys and values in block order, some heads at a time.

Extra memory, in bytes, beside what `triton_attend` tells: `CHUNK_BYTES`, or the keys and values of one head where these
are more; with a bias 4 X K (SP - SK) where blocks are padded.
"""
# B batch   H heads   D head dim   G = B * H   L heads of a chunk   K key blocks   SP slots of a key block, padded

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad

from .attend_call import AttendCall
from .triton_tiles import Tile

# Copies of 12 heads of Wan at 720p: a launch then has thousands of programs, so its last wave is a few percent of it.
CHUNK_BYTES = 512 << 20
SIDES = (64, 128)  # slots of a key block, padded: the boxes that the copy engine brings


def why_not(call: AttendCall, DP: int, SP: int) -> str | None:
    """Why keys and values are not laid out for a call that the gathering kernel takes, or None. Reads shapes only."""
    kernels, reason = found()
    if kernels is None:
        return f"this Triton has no tensor descriptors: {reason}"
    if call.q.element_size() != 2 or DP > 128:
        return "it takes 16-bit numbers and head dims up to 128"
    if SP not in SIDES:
        return "key blocks of fewer than 33 or more than 128 tokens leave the copy engine idle"
    if len(call.plan.full) > 2:
        return "more than two runs of query blocks see everything"
    return None


@cache
def found() -> tuple[ModuleType | None, str]:
    """The module with the kernels, or why there is none. Older Tritons lack what it imports."""
    try:
        from . import triton_ordered_kernel
    except Exception as error:  # broken installs raise more than ImportError
        return None, f"{type(error).__name__}: {error}"
    return triton_ordered_kernel, ""


def launch(call: AttendCall, given: dict, tail: dict, tile: Tile) -> None:
    """All query blocks; given, tail: arguments as `triton_attend` makes them for its own kernel."""
    kernels, _ = found()
    plan, SP, groups = call.plan, given["SP"], call.q.shape[0] * call.q.shape[2]
    blocks, rows = given["K"], given["K"] * SP
    chunk = min(groups, max(1, CHUNK_BYTES // (2 * rows * given["D"] * call.q.element_size())))
    laid = torch.empty(2, chunk * rows, given["D"], dtype=call.q.dtype, device=call.q.device)
    given = _arguments(call, given, tail, tile)
    keys, values = (kernels.TensorDescriptor.from_tensor(x, [SP, given["DP"]]) for x in laid)
    for head in range(0, groups, chunk):
        heads = min(chunk, groups - head)
        for name, x in zip("kv", laid, strict=True):
            kernels.lay_out_kernel[(heads * blocks,)](
                x=given[name], slots=given["k_slots"], out=x, head=head, geo=given["k_geo"],
                **{f"x_{axis}": given[f"{name}_{axis}"] for axis in "bnh"},
                **{key: given[key] for key in ("heads", "K", "SK", "D", "DP", "SP")}, num_warps=4,
            )  # fmt: skip
        programs = heads * given["Q"] * -(-plan.q_slots.shape[2] // tile.M)
        wanted = {key: x for key, x in given.items() if key in kernels.ordered_kernel.arg_names}
        kernels.ordered_kernel[(programs,)](
            **wanted, keys=keys, values=values, head=head, M=tile.M, N=tile.N, U=tile.boxes,
            num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
        )  # fmt: skip


def _arguments(call: AttendCall, given: dict, tail: dict, tile: Tile) -> dict:
    """Those of `ordered_kernel` that no chunk changes, and those of `lay_out_kernel`."""
    kernels, _ = found()
    SK, SP = given["SK"], given["SP"]
    whole = call.key_bias is None and given["K"] * SP == call.k.shape[1]  # no slot is empty, known without the device
    spans = [*call.plan.full, (0, 0), (0, 0)]
    if call.plan.sees_everything:
        spans = [(0, given["Q"]), (0, 0)]
    (full_0, past_0), (full_1, past_1) = spans[0], spans[1] if spans[1] != (0, 0) else (spans[0][1],) * 2
    pooled = [
        kernels.TensorDescriptor.from_tensor(x.flatten(0, 1), [tile.N, given["DP"]])
        for x in ((tail["tail_k"], tail["tail_v"]) if tail.get("TAIL") == "row" else (given["out"].flatten(0, 1),) * 2)
    ]
    return {
        **given, **tail, "slot_bias": given["slot_bias"] if SK == SP else _padded(given["slot_bias"], SP - SK),
        "BIASED": not whole or call.scale <= 0, "tail_keys": pooled[0], "tail_values": pooled[1],
        "full_0": full_0, "past_0": past_0, "full_1": full_1, "past_1": past_1,
    }  # fmt: skip


def _padded(bias: Tensor, slots: int) -> Tensor:
    return pad(bias, (0, slots), value=-torch.inf)
