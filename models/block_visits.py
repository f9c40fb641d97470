"""Looking into a forward of the diffusion model: every transformer block, or every part of one, offered to a method.

For the time of one forward the blocks' `forward` is covered on the module itself, which works for every native family,
also for those without block patches, and below whatever block patches other packs have put on. A visitor may run the
block, or give the streams back without running it.

Never under torch.compile: the covering function would be traced, and compiled anew for each of its forms.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from torch import Tensor, nn

from .families import Family

# What flows through a block: one entry per name in `Family.streams`, a tensor, or a tuple of them (video and sound).
Streams = tuple
Visit = Callable[[int, Streams, Callable[..., Streams]], Streams]
Part = Callable[[int, str, Callable[[], Tensor]], Tensor]


@contextmanager
def visiting_blocks(model: nn.Module, family: Family, visit: Visit) -> Iterator[None]:
    """Within, each block calls `visit(index, streams, run)` and hands on the streams that it returns.

    index: 0, 1, ... over all stacks of `family.streams`, in order of execution
    streams: what comes in; blocks of some models write into them, so what is kept must be cloned
    run: run(*streams) -> the streams after the block itself
    """
    with covered((block, _visitor(block, names, index, visit)) for index, (block, names) in
                 enumerate(blocks_of(model, family))):
        yield


@contextmanager
def visiting_modules(model: nn.Module, family: Family, visit: Part) -> Iterator[None]:
    """Within, each part of a block in `family.modules` calls `visit(index, name, run)`; run() -> its output."""
    pairs = (
        (getattr(block, name), _part(index, name, visit))
        for index, (block, _) in enumerate(blocks_of(model, family))
        for name in family.modules
        if getattr(block, name, None) is not None
    )
    with covered(pairs):
        yield


def blocks_of(model: nn.Module, family: Family) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """The blocks of all stacks in order of execution, each with the names of its streams."""
    found = []
    for stack, names in family.streams.items():
        blocks = getattr(model, stack, ())
        found += [(block, names) for block in (blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks)]
    return found


@contextmanager
def covered(pairs: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Within, each module's forward is `cover(forward)`. What was there before comes back, however this ends."""
    undo: list[tuple[nn.Module, Callable | None]] = []
    try:
        for module, cover in pairs:
            undo.append((module, module.__dict__.get("forward")))
            module.forward = cover(module.forward)
        yield
    finally:
        for module, before in reversed(undo):
            if before is None:
                del module.forward
            else:
                module.forward = before


def _visitor(block: nn.Module, names: tuple[str, ...], index: int, visit: Visit) -> Callable:
    order = _parameters(type(block))

    def cover(forward: Callable) -> Callable:
        def covering(*args, **kwargs):
            values = {**dict(zip(order, args, strict=False)), **kwargs}

            def run(*streams):
                out = forward(**{**values, **dict(zip(names, streams, strict=True))})
                return out if len(names) > 1 else (out,)

            out = visit(index, tuple(values[name] for name in names), run)
            return out if len(names) > 1 else out[0]

        return covering

    return cover


def _part(index: int, name: str, visit: Part) -> Callable:
    def cover(forward: Callable) -> Callable:
        return lambda *args, **kwargs: visit(index, name, lambda: forward(*args, **kwargs))

    return cover


@lru_cache
def _parameters(block: type) -> tuple[str, ...]:
    return tuple(inspect.signature(block.forward).parameters)[1:]
