"""Launches of block attention over keys and values in block order, some heads at a time.

Extra memory, in bytes, beside what `triton_attend` tells: `CHUNK_BYTES`, or the keys and values of one head where these
are more; with a bias 4 X K (SP - SK) where blocks are padded.
"""
# B batch   H heads   D head dim   G = B * H   L heads of a chunk   K key blocks   SP slots of a key block, padded

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad

from .attend_call import AttendCall
from .triton_tiles import Tile

# Copies of 12 heads of Wan at 720p: a launch then has thousands of programs, so its last wave is a few percent of it.
CHUNK_BYTES = 512 << 20
SIDES = (32, 64, 128)  # slots of a key block, padded: the boxes that the copy engine brings


def why_not(call: AttendCall, DP: int, SP: int) -> str | None:
    """Why keys and values are not laid out for a call that the gathering kernel takes, or None. Reads shapes only."""
    kernels, reason = found()
    if kernels is None:
        return f"this Triton has no tensor descriptors: {reason}"
    if call.q.element_size() != 2 or DP > 128:
        return "it takes 16-bit numbers and head dims up to 128"
    if SP not in SIDES:
        return "it takes key blocks of 17 to 128 tokens"
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
    given = _arguments(call, given, tail, tile)
    buffers = _Buffers.of(call, chunk * blocks, given)
    int8 = buffers.keys.dtype == torch.int8
    for head in range(0, groups, chunk):
        heads = min(chunk, groups - head)
        buffers.fill(given, head, heads * blocks)
        programs = heads * given["Q"] * -(-plan.q_slots.shape[2] // tile.M)
        wanted = {key: x for key, x in given.items() if key in kernels.ordered_kernel.arg_names}
        kernels.ordered_kernel[(programs,)](
            **wanted, keys=_boxes(buffers.keys, SP, given), values=_boxes(buffers.values, SP, given), head=head,
            middle=buffers.middle, steps=buffers.steps, INT8=int8, M=tile.M, N=tile.N, U=tile.boxes,
            num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
        )  # fmt: skip


@dataclass(frozen=True)
class _Buffers:
    """Keys and values of some heads in block order. keys, values: [L * K * SP, D]

    middle: fp32 [G, D], what int8 keys are less by; steps: fp32 [L * K], their step sizes; else any tensors
    """

    keys: Tensor
    values: Tensor
    middle: Tensor
    steps: Tensor

    @classmethod
    def of(cls, call: AttendCall, blocks: int, given: dict) -> _Buffers:
        device, rows = call.q.device, (blocks * given["SP"], given["D"])
        int8 = call.int8 and given["D"] % 16 == 0  # rows of a box begin at multiples of 16 bytes
        keys = torch.empty(rows, dtype=torch.int8 if int8 else call.q.dtype, device=device)
        values = torch.empty(rows, dtype=call.q.dtype, device=device)
        if not int8:
            return cls(keys, values, given["slot_bias"], given["slot_bias"])
        middle = call.k.mean(1, dtype=torch.float32).flatten(0, 1)
        return cls(keys, values, middle, torch.empty(blocks, device=device))

    def fill(self, given: dict, head: int, programs: int) -> None:
        """Heads from `head` on; programs: blocks in all."""
        kernels, _ = found()
        shared = {key: given[key] for key in ("heads", "K", "SK", "D", "DP", "SP")} | {"slots": given["k_slots"]}
        strides = {name: {f"x_{axis}": given[f"{name}_{axis}"] for axis in "bnh"} for name in "kv"}
        shared |= {"head": head, "geo": given["k_geo"], "num_warps": 4}
        if self.keys.dtype == torch.int8:
            kernels.lay_out_int8_kernel[(programs,)](
                x=given["k"], out=self.keys, middle=self.middle, steps=self.steps, **strides["k"], **shared
            )
        else:
            kernels.lay_out_kernel[(programs,)](x=given["k"], out=self.keys, **strides["k"], **shared)
        kernels.lay_out_kernel[(programs,)](x=given["v"], out=self.values, **strides["v"], **shared)


def _boxes(rows: Tensor, height: int, given: dict) -> object:
    """A descriptor of [R, D] that brings boxes of [height, DP]."""
    return found()[0].TensorDescriptor.from_tensor(rows, [height, given["DP"]])


def _arguments(call: AttendCall, given: dict, tail: dict, tile: Tile) -> dict:
    """Those of `ordered_kernel` that no chunk changes, and those of `lay_out_kernel`."""
    SP, bias = given["SP"], given["slot_bias"]
    if given["SK"] < SP:
        bias = pad(bias, (0, SP - given["SK"]), value=-torch.inf)
    whole = call.key_bias is None and given["K"] * SP == call.k.shape[1]  # no slot is empty, known without the device
    rows = [given["out"].flatten(0, 2)] * 2
    if tail.get("TAIL") == "row":
        rows = [tail[name].flatten(0, 1) for name in ("tail_k", "tail_v")]
    pooled = [_boxes(x, tile.N, given) for x in rows]
    (full_0, past_0), (full_1, past_1) = _full(call)
    return {
        **given, **tail, "slot_bias": bias,
        "BIASED": not whole or call.scale <= 0, "tail_keys": pooled[0], "tail_values": pooled[1],
        "full_0": full_0, "past_0": past_0, "full_1": full_1, "past_1": past_1,
    }  # fmt: skip


def _full(call: AttendCall) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and past the last of two runs of query blocks that see everything, ascending; they may be empty."""
    if call.plan.sees_everything:
        queries = call.plan.q_slots.shape[1]
        return (0, queries), (queries, queries)
    runs = [*call.plan.full] or [(0, 0)]
    return runs[0], runs[1] if len(runs) > 1 else (runs[0][1],) * 2
