"""One attention call in the hands of a method: its blocks, the density that is wanted, and the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ...kernels.attend_call import Reshape, Tail
from ...kernels.block_attend import block_attend
from ...kernels.block_plan import BlockPlan
from ..call import AttentionCall
from .blocks import TILES, Blocks
from .orders import BlockOrder


@dataclass
class Job:
    """blocks: the token order that was asked for
    tail: how dropped blocks stay in the softmax, see `kernels.block_attend`; None drops them
    density: share of the video-to-video blocks wanted exact, above 0 and at most 1; None: the method's own rule
    memo: what a method has found out about this call; shared by all jobs of one call, so that plans for several
        densities search once
    int8: the products of queries and keys may be in int8, see `kernels.block_attend`
    """

    call: AttentionCall
    blocks: Blocks = TILES
    tail: Tail | None = "row"
    density: float | None = None
    memo: dict = field(default_factory=dict)
    int8: bool = False
    _plan: BlockPlan | Callable[[], BlockPlan] | None = field(default=None, init=False)

    @property
    def used(self) -> BlockPlan | None:
        """The plan of the last kernel run, None as long as the call was dense. It may be made only when it is read."""
        if callable(self._plan):
            self._plan = self._plan()
        return self._plan

    @used.setter
    def used(self, plan: BlockPlan | Callable[[], BlockPlan] | None) -> None:
        self._plan = plan

    @property
    def dense(self) -> bool:
        """True as long as no kernel has run, which needs no plan to tell."""
        return self._plan is None

    @cached_property
    def order(self) -> BlockOrder:
        """The blocks of this call's layout, built once a run."""
        return self.blocks.of(self.call)

    @cached_property
    def key_bias(self) -> Tensor | None:
        """The mask as the kernels take it, fp32 [B, N]; None without one."""
        bias = self.call.key_bias
        return None if bias is None else bias.expand(self.call.q.shape[0], -1)

    def run(
        self,
        plan: BlockPlan,
        *,
        tail: Tail | str | None = "asked",
        reshape: Reshape | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The kernel on this call. `tail` is the user's choice unless the method must have its own.

        returns: [B, N, H, D]; with return_lse also fp32 [B, N, H]
        """
        self.used = plan
        call = self.call
        return block_attend(
            call.q, call.k, call.v, plan,
            scale=call.scale, key_bias=self.key_bias, tail=self.tail if tail == "asked" else tail,
            reshape=reshape, return_lse=return_lse, key_means=self._key_means(plan), int8=self.int8,
        )  # fmt: skip

    def _key_means(self, plan: BlockPlan) -> tuple[Tensor, Tensor] | None:
        """What selection has pooled of this plan's key blocks, so that a tail need not do it again."""
        means = getattr(self.memo.get("pooled"), "means", None)
        return (means.key, means.log_mass) if means and plan.k_slots is self.order.slots else None
