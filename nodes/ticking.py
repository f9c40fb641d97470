"""Progress and interrupt of long work, in one call."""

from __future__ import annotations

from collections.abc import Callable

from ..models import host


def ticking(total: int) -> Callable[[int], None]:
    """Call the result with the number of units done: the node shows it, and the user's interrupt ends the work."""
    progress = host.progress_bar(max(1, total))

    def tick(done: int) -> None:
        host.check_interrupt()
        progress(done)

    return tick
