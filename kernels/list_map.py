"""Lists of what a map keeps, as a BlockPlan holds them."""
# Q rows   K columns   C entries of a list

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_keep_top
from .block_plan import kept_lists
from .dispatch import Backend, Dispatch


@dataclass(frozen=True)
class ListCall:
    """The arguments of `list_map`."""

    keep: Tensor
    width: int | None = None

    @property
    def q(self) -> Tensor:
        """What `Dispatch` knows a call by."""
        return self.keep

    @property
    def most(self) -> int:
        """C."""
        return self.keep.shape[-1] if self.width is None else self.width

    def why_not(self) -> str | None:
        """Why no backend can take this call, or None. Reads shapes only, never the device."""
        if self.keep.dtype != torch.bool or not self.keep.ndim:
            return f"the map is {self.keep.dtype} with {self.keep.ndim} dims; it takes bool with 1 or more"
        return None


def list_map(keep: Tensor, width: int | None = None, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Columns that each row of a map keeps. The reference is `block_plan.kept_lists`, and the torch backend.

    keep: bool [..., Q, K]
    width: C, the most that a list may hold; columns past it are lost, the last ones first. None: K
    backend: the name of one of BACKENDS, which then must take the call
    returns: int32 [..., Q, C], ascending, anything past the count; int32 [..., Q], the counts
    raises: ValueError with the reason of `ListCall.why_not`, or of the backend that was asked for
    """
    return BACKENDS.run(ListCall(keep, width), backend)


BACKENDS = Dispatch(
    "Listing what a map keeps",
    (
        Backend(triton_keep_top.NAME, triton_keep_top.why_not, triton_keep_top.listed),
        Backend("torch", lambda call: None, lambda call: kept_lists(call.keep, call.width)),
    ),
)
