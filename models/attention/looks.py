"""What is read from the device while a run is sparse: whether the inputs are finite, and how much was kept.

Each look waits for all that the device has still to do, and leaves it idle until the next layer is launched. So there
is one an evaluation, at its first sparse call, when little is waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..call import AttentionCall

REASON = "queries, keys or values are not finite"


@dataclass
class Share:
    """A kept share that some calls have in common.

    value: None as long as it was not read
    calls: that it has yet to be noted for
    """

    tensor: Tensor
    value: float | None = None
    calls: int = 0


@dataclass
class Looks:
    """Of one patch, for the branches of a call, on one layout and window.

    evaluation, layer: of the last call
    broken: the first call of the evaluation was not finite, so that the others are looked at too
    waiting: shares to be read at the next look
    """

    evaluation: int = -1
    layer: int = -1
    broken: bool = False
    waiting: list[Share] = field(default_factory=list)

    @classmethod
    def of(cls, owner: object, call: AttentionCall) -> Looks:
        branches = tuple(branch.id for branch in call.branches)
        return call.run.state((owner, "looks"), branches, -1, call.layout.key, call.forward.window, cls)

    def not_finite(self, call: AttentionCall) -> str | None:
        """Why the call cannot be sparse, or None: a block that holds NaN would choose blocks at random.

        What becomes so in a later layer is not seen there; it has a plan like any other, and the next evaluation shows.
        """
        begins = self.evaluation != call.run.calls or call.layer <= self.layer
        self.evaluation, self.layer = call.run.calls, call.layer
        if begins:
            self.broken = False
            self._read(call)
        if begins or self.broken:
            total = sum(x.sum(dtype=torch.float32) for x in (call.q, call.k, call.v))
            self.broken = not bool(total.isfinite())
        return REASON if self.broken else None

    def note(self, call: AttentionCall, share: Share) -> None:
        """The share of this call into the report, now or when it is read."""
        if share.value is not None:
            call.note(kept=share.value)
            return
        share.calls += 1
        if share.calls == 1:
            self.waiting.append(share)

    def _read(self, call: AttentionCall) -> None:
        """All at once, and into the report."""
        if not self.waiting:
            return
        values = torch.stack([share.tensor for share in self.waiting]).tolist()
        for share, value in zip(self.waiting, values, strict=True):
            share.value = value
            for _ in range(share.calls):
                call.note(kept=value)
        self.waiting.clear()
