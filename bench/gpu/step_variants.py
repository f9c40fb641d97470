"""What the whole step is timed with: patched clones of one MODEL, all on the same weights."""
# B batch   H heads   N tokens   D head dim

from __future__ import annotations

from collections.abc import Callable

import torch
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, SparseAttention, When
from interspatial.models.attention.draft import DOUBLE
from interspatial.models.cache import CACHES, PACES, StepCache
from interspatial.models.report import Card
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

ATTENTION = "optimized_attention_override"
ALL = When()  # every step and layer, whatever the number of tokens
NEVER = 10**9  # tokens
# ComfyUI asks for torch's flash attention first; on Hopper cuDNN's may be faster. On a CPU there is but one.
OTHER_BACKEND = {"cuda": ("cudnn", SDPBackend.CUDNN_ATTENTION), "cpu": ("flash", SDPBackend.FLASH_ATTENTION)}
PATTERN = (2, 2)  # steps of a cached run here: those that run, then those that are forecast
INTERVAL = 4


def with_override(model, override: Callable):
    """A clone whose attention goes through `override`, as ComfyUI calls one."""
    model = model.clone()
    model.model_options["transformer_options"] = {**model.model_options["transformer_options"], ATTENTION: override}
    return model


def by_backend(backend: SDPBackend) -> Callable:
    """An override: one backend of torch's attention for all calls in 16 bits without a mask."""

    def attend(func, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, attn_precision=None, skip_reshape=False,
               skip_output_reshape=False, **rest) -> Tensor:  # fmt: skip
        if mask is not None or rest.get("enable_gqa") or (q.is_cuda and q.dtype == torch.float32):
            return func(q, k, v, heads, mask=mask, attn_precision=attn_precision, skip_reshape=skip_reshape,
                        skip_output_reshape=skip_output_reshape, **rest)  # fmt: skip
        if not skip_reshape:
            q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            out = scaled_dot_product_attention(q, k, v, scale=rest.get("scale"))
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    return attend


def values_only(below: Callable | None) -> Callable:
    """An override: self attention answers with its values; attention to the text goes on to `below` or ComfyUI's."""

    def attend(func, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, skip_reshape=False, skip_output_reshape=False,
               **rest) -> Tensor:  # fmt: skip
        axis = -2 if skip_reshape else 1
        if q.shape[axis] != k.shape[axis]:
            call = (func,) if below is None else (below, func)
            return call[0](*call[1:], q, k, v, heads, *args, skip_reshape=skip_reshape,
                           skip_output_reshape=skip_output_reshape, **rest)  # fmt: skip
        out = v if skip_reshape else v.unflatten(-1, (heads, -1)).transpose(1, 2)
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    return attend


def sparse(model, density: float, when: When = ALL, query_blocks: str = DOUBLE):
    """Sparse Video Attention: draft, the preset's block order, the tail for each query."""
    chosen = SparseAttention(METHODS["draft"](density=density, query_blocks=query_blocks), when, Blocks(None))
    return host.attach_attention(model, Card("sparse", "sparse"), chosen)


def cached(model, cache: StepCache):
    return host.attach_step(model, Card("cache", "cache", skips="whole evaluations, or their blocks"), cache)


def preset_cache() -> StepCache:
    return StepCache(CACHES["taylorseer"]())


def pattern_cache() -> StepCache:
    """Runs the first steps of PATTERN and forecasts the others."""
    return StepCache(CACHES["taylorseer"](), PACES["fixed"](INTERVAL), first=PATTERN[0], last=0)


def aside(model):
    """The nodes on the model, and no call that they take: too few tokens for one, too few steps for the other."""
    return cached(sparse(model, 0.2, When(min_tokens=NEVER)), preset_cache())


def short(model):
    """The same with the first block of each kind alone: warms kernels and memory up in a fraction of a step."""
    model = model.clone()
    for stack, count in stacks(model).items():
        kind = "single_block" if stack.startswith("single") else "double_block"
        for number in range(1, count):
            model.set_model_patch_replace(passed_on, "dit", kind, number)
    return model


def passed_on(args: dict, extra: dict) -> dict:
    """In place of a block: its streams as they came."""
    return {name: args[name] for name in ("img", "txt") if name in args}


def stacks(model) -> dict[str, int]:
    """Blocks of a MODEL by kind."""
    return host.family_of_model(model).stacks(model.model.diffusion_model)
