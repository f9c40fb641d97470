"""What else may be on a controlled model, as the benches here put it on, and means of figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, SparseAttention, When
from interspatial.models.cache import CACHES, StepCache
from interspatial.models.report import Card


def mean(values: Iterable[float]) -> float:
    """Of those that are there; NaN of none."""
    kept = [value for value in values if not math.isnan(value)]
    return statistics.fmean(kept) if kept else math.nan


def sparse(model, density: float):
    """The draft method on tiles of 2 x 2 tokens, the largest that leave a choice on these models."""
    chosen = SparseAttention(METHODS["draft"](density=density), When(), Blocks("tile", 2), "row")
    return host.attach_attention(model, Card("sparse", "sparse"), chosen)


def cached(model):
    """taylorseer at its preset."""
    return host.attach_step(model, Card("cache", "cache"), StepCache(CACHES["taylorseer"]()))


def windowed(model):
    """Windows of 3 latent frames that overlap by one."""
    return ContextWindowsManualNode.execute(
        model=model, context_length=3, context_overlap=1, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False).result[0]  # fmt: skip
