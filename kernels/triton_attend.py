"""Block attention in Triton: an online softmax that reads keys and values where they lie, or laid out in block order
first (`triton_ordered`), whichever the tuner finds faster; CUDA and ROCm.

Extra memory, in bytes, beside the inputs and the results, with G = B H and I the size of a number of q:
16 X K S for the key slots' bias and its making, X = 1, B or G; with a tail 2 I G K D for the block means, L Q K / 8 for
the map of kept blocks, L = 1 or G lists, and what `pool_blocks` takes; with tail "block" (I + 4) G Q D more;
I B N H D for each of q, k, v whose strides are not multiples of 8, and for a residual that is not contiguous.
The first call of a kind (head dim, dtype, tail, size class of the blocks) compiles and times a few tiles, and waits for
the device; no other call does.
"""
# B batch   N tokens   H heads   D head dim   Q query blocks   K key blocks   S slots per block   C longest list
# G = B * H   W = ceil(K / 32)

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from . import triton_ordered
from .attend_call import AttendCall
from .block_plan import BlockPlan
from .pool_blocks import pool_blocks, slot_bias
from .triton_arguments import UNIT, padded, strided
from .triton_tiles import Tile, Tuner, device_of, laid_out, tiles

NAME = "triton"

LOG2E = 1.4426950408889634
LIMIT = 1e38  # finite logits stay finite in units of log 2
MAX_DIM = 256

TUNER = Tuner("attend")


def why_not(call: AttendCall) -> str | None:
    """Why it cannot take a call that `AttendCall.why_not` lets through, or None. Never waits for the device."""
    device, dim = call.q.device, call.q.shape[-1]
    if device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA and ROCm devices, and the tensors are on {device.type}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on the CPU, where Triton runs in its interpreter alone (TRITON_INTERPRET=1)"
    if dim % UNIT or dim > MAX_DIM:
        return f"the head dim is {dim}; it takes multiples of {UNIT} up to {MAX_DIM}"
    kernels, reason = _kernels()
    if kernels is None:
        return f"Triton cannot be used: {reason}"
    if device.type == "cpu" and not kernels.INTERPRETED:
        return "TRITON_INTERPRET was set after Triton had been imported"
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if call.plan.sees_everything and not call.return_lse:
        return "the plan keeps everything, which is dense attention: torch's own kernels are made for it"
    return None


def attend(call: AttendCall, tile: Tile | None = None) -> tuple[Tensor, Tensor | None]:
    """Output [B, N, H, D] and, if asked for, lse fp32 [B, N, H]; the contract is that of `block_attend`.

    tile: one of `offered`; None: the fastest of them
    """
    kernels, reason = _kernels()
    if kernels is None:
        raise RuntimeError(f"Block attention cannot run in Triton: {reason}.")
    out = torch.empty(call.q.shape, dtype=call.q.dtype, device=call.q.device)
    lse = torch.empty(call.q.shape[:3], device=call.q.device) if call.return_lse else None
    if out.numel():
        with torch.cuda.device(call.q.device) if call.q.is_cuda else nullcontext():
            _launch(kernels, call, out, lse, tile)
    return out, lse


@cache
def _kernels() -> tuple[ModuleType | None, str]:
    """The module with the kernels, or why there is none."""
    try:
        from . import triton_attend_kernel
    except Exception as error:  # broken installs raise more than ImportError
        return None, f"{type(error).__name__}: {error}"
    return triton_attend_kernel, ""


def _launch(kernels: ModuleType, call: AttendCall, out: Tensor, lse: Tensor | None, tile: Tile | None) -> None:
    given = {"out": out, "scale": call.scale * LOG2E, **strided(q=call.q, k=call.k, v=call.v)}
    given |= _tables(call) | _compile_time(call)
    given |= {"lse": given["slot_bias"] if lse is None else lse, "LSE": lse is not None}
    given |= _reshape(call, given) | _without_tail(given)
    tail = _tail(kernels, call, given, _gathering(kernels, call, given["DP"], 64)[0])

    def launch(tile: Tile) -> None:
        if tile.boxes:
            triton_ordered.launch(call, given, tail, tile)
            return
        for run in _runs(call.plan):
            _gather(kernels, call, given | ({} if run[2] else tail), tile, run)

    if tile is None:
        slots, int8 = (padded(call.plan.q_slots.shape[2]), given["SP"]), ("int8",) if call.int8 else ()
        key = call.q.device, call.q.dtype, call.q.shape[-1], call.tail, *slots, *int8
        tile = TUNER.choose(key, _offered(kernels, call), launch)
    launch(tile)


def _gather(kernels: ModuleType, call: AttendCall, given: dict, tile: Tile, run: tuple[int, int, bool]) -> None:
    """One run of query blocks by the kernel that reads keys and values where they lie."""
    first, last, full = run
    programs = call.q.shape[0] * call.q.shape[2] * (last - first) * -(-call.plan.q_slots.shape[2] // tile.M)
    kernels.attend_kernel[(programs,)](
        **given, first=first, blocks=last - first, FULL=full, M=tile.M, N=tile.N,
        DA=given["DP"] // 2 if tile.split else given["DP"], num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def offered(call: AttendCall) -> list[Tile]:
    """The tiles that could compute a call, the likeliest first; they differ in speed and memory alone."""
    kernels, reason = _kernels()
    if kernels is None:
        raise RuntimeError(f"Block attention cannot run in Triton: {reason}.")
    return _offered(kernels, call)


def _offered(kernels: ModuleType, call: AttendCall) -> list[Tile]:
    slots, DP, SP = (padded(n) for n in (call.plan.q_slots.shape[2], call.q.shape[-1], call.plan.k_slots.shape[2]))
    found = _gathering(kernels, call, DP, slots)
    if not kernels.INTERPRETED and triton_ordered.why_not(call, DP, SP) is None:
        found = laid_out(call.q.element_size(), DP, slots, SP, device_of(call.q.device)) + found
    return found


def _gathering(kernels: ModuleType, call: AttendCall, DP: int, slots: int) -> list[Tile]:
    """Tiles of the kernel that gathers, for query blocks of that many slots, padded to a power of two."""
    if kernels.INTERPRETED:
        return [Tile(min(64, slots), 64, 4, 1)]
    return tiles(call.q.element_size(), DP, slots, device_of(call.q.device))


def _tables(call: AttendCall) -> dict[str, Tensor | int]:
    plan, heads = call.plan, call.q.shape[0] * call.q.shape[2]
    counts = plan.cols.new_full((1, 1), plan.cols.shape[2]) if plan.counts is None else plan.counts.contiguous()
    bias = _log2(slot_bias(plan.k_slots, call.key_bias, call.q.shape[2]))
    return {
        "q_slots": plan.q_slots.contiguous(), "k_slots": plan.k_slots.contiguous(), "cols": plan.cols.contiguous(),
        "counts": counts, "slot_bias": bias, "heads": call.q.shape[2], "q_tokens": call.q.shape[1],
        "Q": plan.q_slots.shape[1], "K": plan.k_slots.shape[1], "C": plan.cols.shape[2],
        "SQ": plan.q_slots.shape[2], "SK": plan.k_slots.shape[2], "W": -(-plan.k_slots.shape[1] // 32),
        "q_geo": int(len(plan.q_slots) > 1), "k_geo": int(len(plan.k_slots) > 1),
        "cols_geo": int(len(plan.cols) > 1), "bias_share": heads // len(bias),
        "counts_geo": counts.shape[1] * (len(counts) > 1), "counts_step": int(plan.counts is not None),
    }  # fmt: skip


def _compile_time(call: AttendCall) -> dict[str, int]:
    dim, slots = call.q.shape[-1], call.plan.k_slots.shape[2]
    return {"D": dim, "DP": padded(dim), "SP": padded(slots)}


def _log2(logits: Tensor) -> Tensor:
    """Natural logits in units of log 2, in place; -inf stays, other numbers stay finite."""
    dead = logits == -torch.inf
    return logits.clamp_(-LIMIT, LIMIT).mul_(LOG2E).masked_fill_(dead, -torch.inf)


def _runs(plan: BlockPlan) -> list[tuple[int, int, bool]]:
    """Runs of query blocks: first, past the last, whether they see everything. Those with lists come first."""
    queries = plan.q_slots.shape[1]
    full = ((0, queries),) if plan.sees_everything else plan.full
    edges = [0, *(edge for span in full for edge in span), queries]
    listed = zip(edges[::2], edges[1::2], strict=True)
    return [(*span, kind) for kind, spans in ((False, listed), (True, full)) for span in spans if span[0] < span[1]]


def _reshape(call: AttendCall, given: dict[str, Tensor]) -> dict[str, Tensor | str]:
    if call.reshape is None:
        return {"RESHAPE": "no", "rho": given["slot_bias"], "residual": given["out"]}
    rho, residual = call.reshape.rho.float().contiguous(), call.reshape.residual
    if residual is None:
        return {"RESHAPE": "rho", "rho": rho, "residual": given["out"]}
    return {"RESHAPE": "both", "rho": rho, "residual": residual.contiguous()}


def _without_tail(given: dict[str, Tensor]) -> dict[str, Tensor | int | str]:
    none = {"tail_k": given["out"], "tail_v": given["out"], "tail_mass": given["slot_bias"], "words": given["cols"]}
    return {"TAIL": "none", **none, "words_geo": 0}


def _tail(
    kernels: ModuleType, call: AttendCall, given: dict[str, Tensor | int], tile: Tile
) -> dict[str, Tensor | int | str]:
    """Block means, and which of them each query block has instead of the block."""
    if call.tail is None or call.plan.sees_everything:
        return {}
    key, mass = call.key_means or pool_blocks(call.k, call.plan.k_slots, call.key_bias)
    value, _ = pool_blocks(call.v, call.plan.k_slots, call.key_bias)
    key, value = (_by_head(x).to(call.q.dtype) for x in (key, value))
    words, mass = _words(kernels, given), _by_head(mass[..., None])[..., 0].clone()  # others may read it later
    tail = {"tail_k": key, "tail_v": value, "tail_mass": _log2(mass), "words": words}
    tail["words_geo"] = int(len(words) > 1)
    if call.tail == "row":
        return {"TAIL": "row", **tail}
    query = _by_head(pool_blocks(call.q, call.plan.q_slots)[0]).to(call.q.dtype)
    mean, mass = torch.empty(query.shape, device=query.device), torch.empty(query.shape[:2], device=query.device)
    kernels.tail_kernel[(len(query) * -(-query.shape[1] // tile.M),)](
        q=query, k=key, v=value, mass=tail["tail_mass"], words=words, out=mean, lse=mass, M=tile.M, N=tile.N,
        words_geo=tail["words_geo"], **{name: given[name] for name in ("scale", "Q", "K", "W", "D", "DP")},
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return {"TAIL": "block", **tail, "tail_v": mean, "tail_mass": mass}


def _by_head(means: Tensor) -> Tensor:
    """[B, K, H, D] as contiguous [G, K, D]; as `pool_blocks` stores its result, no copy."""
    return means.transpose(1, 2).contiguous().flatten(0, 1)


def _words(kernels: ModuleType, given: dict[str, Tensor | int]) -> Tensor:
    """The lists as a map, int32 [1 or G, Q, W]."""
    lists = max(len(given["cols"]), len(given["counts"]))
    words = torch.empty(lists, given["Q"], given["W"], dtype=torch.int32, device=given["cols"].device)
    names = ("cols", "counts", "Q", "K", "C", "W", "cols_geo", "counts_geo", "counts_step")
    kernels.words_kernel[(lists * given["Q"],)](words=words, NC=64, NW=64, **{name: given[name] for name in names})
    return words
