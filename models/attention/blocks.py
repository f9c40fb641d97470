"""The token order and block size that a user asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..call import AttentionCall
from . import orders
from .orders import BlockOrder, QueryBlocks

ORDERS: dict[str, Callable[..., BlockOrder]] = {
    "strip": orders.strip,
    "tile": orders.tile,
    "cube": orders.cube,
    "raster": orders.raster,
    "token_major": orders.token_major,
    "morton": orders.morton,
}
BOXES = {"tile": 2, "cube": 3}  # orders whose blocks are boxes, and how many sides a box has
SIDES = {"cube": 4}  # tokens along a side that give a block of 64, where that is not 8


@dataclass(frozen=True)
class Blocks:
    """order: one of ORDERS, None: the preset's
    side: tokens along a side of a tile or cube; a run has side x side; 0: blocks of 64
    """

    order: str | None = "tile"
    side: int = 0

    def resolved(self, order: str) -> Blocks:
        """With `order` where none was chosen."""
        return self if self.order else replace(self, order=order)

    def of(self, call: AttentionCall) -> BlockOrder:
        """The blocks of this call's layout, built once a run."""

        def build() -> BlockOrder:
            return ORDERS[self.order](call.layout, self._side()).to(call.q.device)

        return call.run.state(self, str(call.q.device), -1, call.layout.key, None, build)

    def doubled(self, call: AttentionCall) -> QueryBlocks:
        """The same order in blocks of twice as many tokens, for queries that share a list; built once a run.

        A box is doubled along the axis that leaves fewest blocks, the last one of equals: rows of tokens are read in
        one piece.
        """

        keys = self.of(call)

        def build() -> QueryBlocks:
            side, make = self._side(), ORDERS[self.order]
            if self.order in BOXES:
                axes = range(BOXES[self.order])
                found = [make(call.layout, tuple(side * (1 + (i == axis)) for i in axes)) for axis in reversed(axes)]
                order = min(found, key=lambda order: order.slots.shape[1])
            else:
                order = make(call.layout, 2 * side)
            return QueryBlocks.over(order.to(call.q.device), keys)

        return call.run.state((self, "doubled"), str(call.q.device), -1, call.layout.key, None, build)

    def _side(self) -> int:
        """What the order takes: tokens along a side of a box, or tokens of a run."""
        side = self.side or SIDES.get(self.order, 8)
        return side if self.order in BOXES else side * side


TILES = Blocks()
