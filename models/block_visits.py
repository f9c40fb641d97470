"""Looking into a forward of the diffusion model: every transformer block, or every part of one, offered to a method.

For the time of one forward the blocks' `forward` is covered on the module itself, which works for every native family,
also for those without block patches, and below whatever block patches other packs have put on. A visitor may run the
block, or give the streams back without running it. What the model adds between two blocks (control networks, VACE's
hints, a voice) is added to whatever the visitor returned.

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
Part = Callable[[int, str, Callable[[], Tensor | Streams]], Tensor | Streams]

PREFETCH = "prefetch_dynamic_vbars"   # where comfy.model_base says in transformer_options whether to fetch ahead


@contextmanager
def visiting_blocks(model: nn.Module, family: Family, visit: Visit) -> Iterator[None]:
    """Within, each block calls `visit(index, streams, run)` and hands on the streams that it returns.

    index: 0, 1, ... over all stacks of `family.streams`, in order of execution
    streams: what comes in, batch first; some blocks, and some models between them, write into it, so what is kept must
        be cloned
    run: run(*streams) -> the streams after the block itself
    """
    axis = family.batch_axis
    with covered((block, _visitor(block, names, axis, index, visit)) for index, (block, names) in
                 enumerate(blocks_of(model, family))):
        yield


@contextmanager
def visiting_modules(model: nn.Module, family: Family, visit: Part) -> Iterator[None]:
    """Within, each part of a block in `family.modules` calls `visit(index, name, run)`; run() -> its output.

    Some parts answer with a tuple, such as the joint attention of video and text.
    """
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
            covering = cover(module.forward)
            undo.append((module, module.__dict__.get("forward")))
            module.forward = covering
        yield
    finally:
        for module, before in reversed(undo):
            if before is None:
                del module.forward
            else:
                module.forward = before


@contextmanager
def without_prefetch(model: nn.Module) -> Iterator[None]:
    """Within, ComfyUI does not fetch the weights of the blocks ahead: those that do not run need none.

    Models that fetch ahead (LTX-2, MiniMax-H3) hand each block to comfy.model_prefetch before it runs. What runs all
    the same still gets its weights, when it asks for them.
    """

    def cover(forward: Callable) -> Callable:
        def covering(*args, transformer_options: dict, **kwargs):
            return forward(*args, transformer_options={**transformer_options, PREFETCH: False}, **kwargs)

        return covering

    with covered([(model, cover)]):
        yield


def _visitor(block: nn.Module, names: tuple[str, ...], axis: int, index: int, visit: Visit) -> Callable:
    order = _parameters(type(block))
    places = {name: order.index(name) for name in names}

    def cover(forward: Callable) -> Callable:
        def covering(*args, **kwargs):
            ran = False

            def run(*streams) -> Streams:
                nonlocal ran
                ran = True
                given, named = list(args), dict(kwargs)
                for (name, place), stream in zip(places.items(), streams, strict=True):
                    holder, key = (given, place) if place < len(given) else (named, name)
                    holder[key] = moved(stream, 0, axis)
                out = forward(*given, **named)
                return tuple(moved(x, axis, 0) for x in (out if len(names) > 1 else (out,)))

            found = (args[place] if place < len(args) else kwargs[name] for name, place in places.items())
            streams = tuple(moved(x, axis, 0) for x in found)
            out = visit(index, streams, run)
            if index == 0 and not ran:
                # The model may go on using what it gave to its first block, and write into what it got back: VACE does.
                out = tuple(_copy(x) for x in out)
            out = tuple(moved(x, 0, axis) for x in out)
            return out if len(names) > 1 else out[0]

        return covering

    return cover


def moved(stream: Tensor | Streams, source: int, target: int) -> Tensor | Streams:
    """The stream, which may be a tuple, with its axis `source` at the place `target`, as a view."""
    if source == target:
        return stream
    if isinstance(stream, tuple):
        return tuple(x.movedim(source, target) for x in stream)
    return stream.movedim(source, target)


def _copy(stream: Tensor | Streams) -> Tensor | Streams:
    return tuple(x.clone() for x in stream) if isinstance(stream, tuple) else stream.clone()


def _part(index: int, name: str, visit: Part) -> Callable:
    def cover(forward: Callable) -> Callable:
        return lambda *args, **kwargs: visit(index, name, lambda: forward(*args, **kwargs))

    return cover


@lru_cache
def _parameters(block: type) -> tuple[str, ...]:
    return tuple(inspect.signature(block.forward).parameters)[1:]
