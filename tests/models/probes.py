"""Methods that only watch, for tests of the hooks."""

from __future__ import annotations

import torch
from interspatial.models.report import Card


class Traced:
    """Writes its name when it is asked, and lets `act` decide what happens."""

    def __init__(self, name: str, trace: list, act=lambda call: call.dense()) -> None:
        self.name, self.trace, self.act = name, trace, act

    def why_not(self, call) -> None:
        self.trace.append(self.name)

    def attend(self, call) -> torch.Tensor:
        return self.act(call)


def attach(model, name: str, kind: str, trace: list, act=lambda call: call.dense(), **kwargs):
    """A clone of `model` with a `Traced` method."""
    from interspatial.models import host

    return host.attach_attention(model, Card(name, kind), Traced(name, trace, act), **kwargs)
