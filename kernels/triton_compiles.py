"""What Triton compiles while something runs, as it tells a listener."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Compiled:
    """One variant of a kernel. cached: it came from Triton's cache on disk, compiled in an earlier session"""

    kernel: str
    seconds: float
    cached: bool


@contextmanager
def listening() -> Iterator[list[Compiled]]:
    """The list grows as kernels are compiled; it stays empty where there is no Triton, or one that tells nothing.

    A listener that was there before still hears everything.
    """
    heard: list[Compiled] = []
    try:
        from triton.knobs import compilation
    except Exception:  # absent, older than 3.4, or broken
        yield heard
        return
    before = compilation.listener

    def listen(*, src, times, cache_hit, **rest) -> None:
        heard.append(Compiled(src.name, times.total / 1e6, cache_hit))  # told in microseconds
        if before is not None:
            before(src=src, times=times, cache_hit=cache_hit, **rest)

    compilation.listener = listen
    try:
        yield heard
    finally:
        compilation.listener = before
