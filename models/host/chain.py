"""The attention hook: all attention methods on a model, in order, above whatever hook was there before.

ComfyUI keeps one slot for an attention override. An `AttentionChain` fills it, remembers the hook it found there, and
is never changed: adding a method makes a new chain, so clones of a model do not see each other's methods.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..call import AttentionCall, Packing
from ..forward import Finding, Forward, NotVideo
from ..layout import TokenLayout

FORWARD = "interspatial_forward"
RUN = "interspatial_run"
REARRANGED = "another patch has rearranged the tokens of this call"


@dataclass(frozen=True)
class Request:
    """The arguments of one call, as ComfyUI gave them."""

    func: Callable[..., Tensor]
    q: Tensor
    k: Tensor
    v: Tensor
    packing: Packing
    rest: dict[str, Any]


@dataclass(frozen=True)
class AttentionChain:
    """An `optimized_attention_override`. methods: outermost first; previous: the hook that was in the slot."""

    methods: tuple = ()
    previous: Callable[..., Tensor] | None = None

    def __call__(self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False,
                 skip_output_reshape=False, **kwargs) -> Tensor:
        rest = {"mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape,
                "skip_output_reshape": skip_output_reshape, **kwargs}
        request = Request(func, q, k, v, Packing(heads, skip_reshape, skip_output_reshape), rest)
        options = kwargs.get("transformer_options") or {}
        forward: Forward | None = options.get(FORWARD)
        if forward is None:
            return self._below(request)
        outer = forward.finding
        if outer is None:
            found = forward.explain(*request.packing.sizes(q, k))
            layer = forward.number(options) if isinstance(found, TokenLayout) else None
            forward.finding = Finding(found, layer, q)
        elif outer.q is not q:
            # below a hook of another pack that was installed between two of ours, and it made new queries
            forward.finding = Finding(REARRANGED, outer.layer, q)
        try:
            return self._offer(0, request, forward, options[RUN])
        finally:
            forward.finding = outer

    def _below(self, request: Request) -> Tensor:
        call = (request.func,) if self.previous is None else (self.previous, request.func)
        return call[0](*call[1:], request.q, request.k, request.v, request.packing.heads, **request.rest)

    def _offer(self, index: int, request: Request, forward: Forward, run) -> Tensor:
        """Offer the call to method `index` and, where it stands aside, to those below it."""
        if index == len(self.methods):
            return self._below(request)
        patch = self.methods[index]
        tally = run.report.tally(patch, patch.card)
        found, layer = forward.finding.layout, forward.finding.layer
        step = run.step
        if not isinstance(found, TokenLayout):
            # a forward that cannot be explained at all has been reported once, when it began
            if not isinstance(found, NotVideo) and isinstance(forward.expected, TokenLayout):
                run.report.aside(tally, found, layer, step)
            return self._offer(index + 1, request, forward, run)
        call = self._call(index, request, forward, run, found, layer, tally)
        reason = patch.method.why_not(call)
        if reason is not None:
            run.report.aside(tally, reason, layer, step)
            return self._offer(index + 1, request, forward, run)
        run.report.ran(tally, layer, step)
        below = [run.report.tally(lower, lower.card) for lower in self.methods[index + 1 :]]
        before = [lower.offered for lower in below]
        out = patch.method.attend(call)
        for lower, count in zip(below, before, strict=True):
            if lower.offered == count:   # the method above never asked for dense attention
                run.report.aside(lower, f"{patch.card.name} above it took the call", layer, step)
        return request.packing.pack_output(out)

    def _call(self, index, request, forward, run, layout, layer, tally) -> AttentionCall:
        packing, head_dim = request.packing, request.q.shape[-1]
        if not packing.split:
            head_dim //= packing.heads
        q, k, v = (packing.unpack(x, head_dim) for x in (request.q, request.k, request.v))

        def dense(q, k, v, mask, layout):
            if q is None:
                return packing.unpack_output(self._offer(index + 1, request, forward, run))
            q, k, v = (packing.pack(x) for x in (q, k, v))
            changed = Request(request.func, q, k, v, packing, {**request.rest, "mask": mask})
            outer, forward.finding = forward.finding, Finding(layout or REARRANGED, layer, q)
            try:
                return packing.unpack_output(self._offer(index + 1, changed, forward, run))
            finally:
                forward.finding = outer

        return AttentionCall(q, k, v, request.rest["mask"], request.rest.get("scale"), layout, layer, forward, run,
                             self.methods[index], tally, dense)

    def with_method(self, patch, order: Callable[[Any], int]) -> AttentionChain:
        """A chain with one method more, sorted by kind; of one kind the last added is the outermost."""
        return AttentionChain(tuple(sorted((patch, *self.methods), key=order)), self.previous)
