"""Which backend computes a call: the first without an objection, and without one that broke before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger("interspatial")


class Call(Protocol):
    """The arguments of one operation; q [B, N, H, D] says on what and in which precision it runs."""

    @property
    def q(self) -> Tensor: ...

    def why_not(self) -> str | None:
        """Why no backend can take the call."""


@dataclass(frozen=True)
class Backend:
    """One way to compute an operation.

    why_not: why it cannot take a call that the call's own `why_not` lets through, or None; never waits for the device
    """

    name: str
    why_not: Callable[[Any], str | None]
    run: Callable[[Any], Any]


@dataclass
class Dispatch:
    """The backends of one operation, best first; the last takes every call.

    What a backend failed with at launch outlives the run: on the same device, in the same dtype and with the same head
    dim it would fail again.
    """

    operation: str
    backends: tuple[Backend, ...]
    failures: dict[tuple[str, torch.device, torch.dtype, int], str] = field(default_factory=dict)

    def reasons(self, call: Call) -> dict[str, str | None]:
        """Why not, for every backend; None where it takes the call."""
        return {backend.name: call.why_not() or self._objection(backend, call) for backend in self.backends}

    def run(self, call: Call, name: str | None = None) -> Any:
        """The result of the backend of that name, or of the first that can take the call.

        raises: ValueError when the call, or the backend that was asked for, says why not
        """
        if reason := call.why_not():
            raise ValueError(f"{self.operation} cannot take this call: {reason}.")
        if name is not None:
            return self._named(name, call).run(call)
        *preferred, last = self.backends
        for backend in preferred:
            if self._objection(backend, call):
                continue
            try:
                return backend.run(call)
            except torch.OutOfMemoryError:  # the host frees memory and tries again
                raise
            except Exception as error:  # a compiler on a card that nobody has tried may raise anything
                self._remember(backend, call, error)
        return last.run(call)

    def _objection(self, backend: Backend, call: Call) -> str | None:
        return backend.why_not(call) or self.failures.get(self._key(backend, call))

    def _key(self, backend: Backend, call: Call) -> tuple[str, torch.device, torch.dtype, int]:
        return backend.name, call.q.device, call.q.dtype, call.q.shape[-1]

    def _remember(self, backend: Backend, call: Call, error: Exception) -> None:
        said = next(iter(str(error).splitlines()), "")
        reason = f"it failed before on {call.q.device} with {call.q.dtype}: {type(error).__name__}: {said}"
        self.failures[self._key(backend, call)] = reason
        log.warning("%s goes on without its %s backend: %s", self.operation, backend.name, reason)

    def _named(self, name: str, call: Call) -> Backend:
        found = [backend for backend in self.backends if name == backend.name]
        if not found:
            names = ", ".join(backend.name for backend in self.backends)
            raise ValueError(f"{self.operation} has no backend {name!r}; there are {names}.")
        if reason := self._objection(found[0], call):
            raise ValueError(f"The {name} backend of {self.operation.lower()} cannot take this call: {reason}.")
        return found[0]
