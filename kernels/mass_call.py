"""One call of block mass as every backend sees it, and what no backend can take."""
# B batch   N tokens   H heads   D head dim   Q query blocks   S slots per block   R rows of a query block
# G = 1 (geometry shared by all heads) or B * H

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attend_call import AttendCall
from .block_plan import BlockPlan


@dataclass(frozen=True)
class MassCall:
    """The arguments of `block_mass`, with the scale as a number. Shapes and meanings are documented there."""

    q: Tensor
    k: Tensor
    lse: Tensor
    plan: BlockPlan
    scale: float
    key_bias: Tensor | None = None
    rows: int | None = None
    max_bytes: int | None = None

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        if reason := AttendCall(self.q, self.k, self.k, self.plan, self.scale, self.key_bias).why_not():
            return reason
        if self.lse.shape != self.q.shape[:3] or self.lse.dtype != torch.float32:
            return f"the lse is {self.lse.dtype} {list(self.lse.shape)}; it must be float32 {list(self.q.shape[:3])}"
        if self.lse.device != self.q.device:
            return f"the lse is on {self.lse.device} and q on {self.q.device}"
        if self.rows is not None and self.rows < 1:
            return f"{self.rows} rows of each query block are asked for; it takes at least 1"
        return None

    def rows_read(self) -> tuple[Tensor, Tensor | None]:
        """The slots of the query rows that count, and what each of them stands for.

        returns: int32 [G, Q, R], -1 is padding; fp32 [G, Q], None: every row stands for itself
        """
        slots, rows = self.plan.q_slots, self.rows
        if rows is None or rows >= slots.shape[2]:
            return slots, None
        live = self.plan.q_live[..., None].long()
        order = torch.arange(rows, device=slots.device)
        spread = torch.where(live > rows, (2 * order + 1) * live // (2 * rows), order)  # middles of equal parts
        return slots.gather(2, spread), (self.plan.q_live / self.plan.q_live.clamp(1, rows)).float()
