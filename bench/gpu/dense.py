"""Every exact dense attention on the machine, as calls on the same q, k and v."""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.stage import Bench, interleaved
from bench.gpu.timing import Ran

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
INEXACT = "comfy-kitchen int8"  # products of int8: no measure for exact attention, but what people run for speed
CHOSEN_BY = 2  # rounds that choose the best before it runs in a longer race


@cache
def compiled_flex(device: str) -> Callable:
    """FlexAttention, compiled where there is a GPU; eager, with the whole score matrix, on the CPU.

    Every shape and mask is a compilation of its own, and past dynamo's limit it would silently run the eager one, which
    takes hundreds of GB at these lengths: the limit is raised, and meeting it is an error.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention, dynamic=False)


def dense_calls(q: Tensor, k: Tensor, v: Tensor, device: str) -> dict[str, Callable]:
    """Name -> a call that returns [B, N, H, D]."""
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    found: dict[str, Callable] = {"default": lambda: scaled_dot_product_attention(*heads_first).transpose(1, 2)}
    for name, backend in BACKENDS.items():

        def dense(backend=backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*heads_first).transpose(1, 2)

        found[name] = dense
    found["flex"] = lambda: compiled_flex(device)(*heads_first).transpose(1, 2)
    found["ComfyUI"] = lambda: _by_comfyui(q, k, v)
    found[INEXACT] = lambda: _by_int8(*heads_first).transpose(1, 2)
    return {f"dense {name}": call for name, call in found.items()}


def _by_comfyui(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As Wan's blocks call it: [B, N, H D] in and out."""
    from comfy.ldm.modules.attention import optimized_attention

    heads = q.shape[2]
    return optimized_attention(*(x.flatten(2) for x in (q, k, v)), heads=heads).unflatten(-1, (heads, -1))


def _by_int8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import comfy_kitchen

    if not hasattr(comfy_kitchen, "int8_attention"):
        raise RuntimeError("this comfy_kitchen has no int8_attention; 0.2.40 does")
    return comfy_kitchen.int8_attention(q, k, v)


def best_of(ran: dict[str, Ran]) -> str | None:
    """The exact dense attention of the least median; None when none ran."""
    dense = {name: one.median for name, one in ran.items() if name.startswith("dense ") and INEXACT not in name}
    return min(dense, key=dense.get, default=None)


def best_dense(q: Tensor, k: Tensor, v: Tensor, bench: Bench, *, flex: bool = True) -> tuple[str, Callable]:
    """Name and call of the exact dense attention that is fastest on this card, at this shape.

    flex: FlexAttention takes part, which is a compilation for every shape
    raises: RuntimeError when none runs
    """
    usable: dict[str, Callable] = {}
    for name, call in dense_calls(q, k, v, bench.device).items():
        if INEXACT in name or (name == "dense flex" and not flex):
            continue
        try:
            call()
            usable[name] = call
        except Exception as error:  # a backend that this card lacks; "ceilings" has a row that says why
            print(f"  {name}: {type(error).__name__}")
    if not usable:
        raise RuntimeError("No dense attention runs on this machine.")
    ran = interleaved(usable, bench, CHOSEN_BY)
    name = min(ran, key=lambda name: min(ran[name]))
    return name, usable[name]


def forget_compiled(device: str) -> None:
    """Between shapes: compiled code of the last one is of no more use."""
    if device != "cpu":
        torch._dynamo.reset()
