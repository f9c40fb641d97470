"""The meter: in some layers and steps of a run, every candidate gets the same call and is held against exact rows.

What the run itself computes is not changed. The error is that of a single call on the activations of this run: where a
candidate would lead a run of its own is not part of it.
"""
# B batch   N tokens   H heads   D head dim   T H W: latent frames, rows, columns

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.attend_call import DTYPES
from ..attention import Job
from ..call import AttentionCall
from ..layout import Grid
from ..report import Card, Tally
from .attention_rows import exact_rows, recall, relative_l2, sample_rows
from .candidates import Candidate
from .plan_view import best_looks, kept_shares, looks, query_rows

MODEL = "this model"  # what the hooks below the meter return


@dataclass(frozen=True)
class Record:
    """One candidate in one call. errors, recalls: of each head    density: share of video-to-video blocks
    kept: share of the whole score matrix    None: not known, of what the model itself does
    """

    name: str
    asked: float | None
    step: int
    layer: int
    errors: tuple[float, ...]
    recalls: tuple[float, ...] | None = None
    density: float | None = None
    kept: float | None = None

    @property
    def error(self) -> float:
        """Mean over heads, as an error target counts it."""
        return sum(self.errors) / len(self.errors)

    @property
    def recall(self) -> float | None:
        return self.recalls and sum(self.recalls) / len(self.recalls)


@dataclass
class Findings:
    """What a meter has found in one run. It outlives the run and holds no tensor of the model's device.

    reasons: why a candidate stood aside, by its name
    seen: share of heads that keep each video token for the query, fp32 [T * H * W] each, by candidate and layer; None
        stands for the best choice
    query: tokens of the query's block, bool [T, H, W]
    """

    records: list[Record] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)
    seen: dict[str | None, list[Tensor]] = field(default_factory=dict)
    query: Tensor | None = None
    grid: Grid | None = None
    tokens: int = 0
    heads: int = 0
    steps: int = 0
    layers: int = 0


@dataclass(frozen=True)
class Place:
    """A point of the video, each number from 0 to 1: left to right, top to bottom, first to last frame."""

    x: float = 0.5
    y: float = 0.5
    frame: float = 0.5

    def cell(self, grid: Grid) -> tuple[int, int, int]:
        """Latent frame, row and column."""
        found = (min(int(at * n), n - 1) for at, n in zip((self.frame, self.y, self.x), grid, strict=True))
        return tuple(found)

    def token(self, grid: Grid) -> int:
        """Number among the video tokens."""
        frame, row, column = self.cell(grid)
        return (frame * grid[1] + row) * grid[2] + column


@dataclass(frozen=True)
class AttentionMeter:
    """What `host.attach_attention` takes, of kind "measure". Its result is that of the hooks below, bit by bit.

    steps, layers: how many of each are measured, 0: all
    rows: query rows that are computed exactly for it
    place: the query whose looks are kept, from the middle one of the measured steps
    shown: the density whose looks are kept
    tick: called before each candidate; raises to interrupt
    """

    candidates: tuple[Candidate, ...]
    found: Findings
    steps: int = 3
    layers: int = 4
    rows: int = 256
    place: Place = Place()
    shown: float | None = None
    tick: Callable[[], None] = lambda: None

    def why_not(self, call: AttentionCall) -> str | None:
        if call.forward.position is None:
            return "the sampler does not tell the step"
        if call.k.shape[2] != call.q.shape[2]:
            return "grouped queries: fewer key heads than query heads"
        if call.q.dtype not in DTYPES:
            return f"attention runs in {call.q.dtype}"
        return call.mask_reason()

    def attend(self, call: AttentionCall) -> Tensor:
        """returns: [B, N, H, D]"""
        out = call.dense()
        measured = self._measured(call)
        if call.layer in _layers(self.layers, call.forward.layers):
            for branch in call.branches:
                if branch.cond == 0:  # one prompt is enough, and the same one whether or not the two are batched
                    self._offer(call.only(branch), out[branch.rows] if measured else None)
        return out

    def _measured(self, call: AttentionCall) -> bool:
        position = call.forward.position
        return position.call == 0 and position.step in _steps(self.steps, position.steps)

    def _offer(self, call: AttentionCall, out: Tensor | None) -> None:
        """Show the call to the candidates: to all of them with `out`, without it to those that remember."""
        audit = None if out is None else Audit.of(call, self.rows)
        if audit:
            self._describe(call)
            self.found.records.append(audit.record(MODEL, None, out, None))
        memos: dict[str, dict] = {}
        for index, candidate in enumerate(self.candidates):
            method = candidate.sparse.method
            if audit is None and not method.remembers:
                continue
            self.tick()
            # A state of its own, a tally that nobody reads, and the truth where a method asks for dense attention:
            # the hooks below are not called again, and may be sparse themselves.
            own = replace(call, owner=(call.owner, index), tally=Tally(Card("", "measure")), _dense=_plain(call))
            if reason := candidate.sparse.why_not(own):
                self.found.reasons[candidate.name, reason] += 1
                continue
            job = candidate.job(own, {} if method.remembers else memos.setdefault(candidate.name, {}))
            result = method.attend(job)
            if audit:
                self.found.records.append(audit.record(candidate.name, candidate.density, result, job))
                self._keep_looks(candidate, job)

    def _describe(self, call: AttentionCall) -> None:
        """Sizes, and at the step whose looks are shown the block of the query with the best choice for it."""
        found, layout = self.found, call.layout
        found.grid, found.tokens, found.heads = layout.grid, layout.tokens, call.q.shape[2]
        found.steps, found.layers = call.forward.position.steps, call.forward.layers
        if not self._shows(call) or not self.candidates:
            return
        order = self.candidates[0].job(call, {}).order
        token = layout.video.start + self.place.token(layout.grid)
        query = torch.zeros(layout.tokens, dtype=torch.bool)
        query[query_rows(order, token).cpu()] = True
        found.query = query[layout.video.start : layout.video.stop].view(layout.grid)
        if self.shown:
            found.seen.setdefault(None, []).append(best_looks(call, order, token, self.shown).cpu())

    def _keep_looks(self, candidate: Candidate, job: Job) -> None:
        if candidate.density != self.shown or not self._shows(job.call):
            return
        video, pairs = job.call.layout.video, job.call.q.shape[0] * job.call.q.shape[2]
        token = video.start + self.place.token(job.call.layout.grid)
        seen = torch.ones(len(video)) if job.used is None else looks(job.used, token, video, pairs).cpu()
        self.found.seen.setdefault(candidate.name, []).append(seen)

    def _shows(self, call: AttentionCall) -> bool:
        steps = _steps(self.steps, call.forward.position.steps)
        return call.forward.position.step == steps[len(steps) // 2]


@dataclass(frozen=True)
class Audit:
    """Some rows of one call, computed exactly."""

    call: AttentionCall
    bias: Tensor | None  # fp32 [B, N]
    rows: Tensor  # int64 [R]
    out: Tensor  # fp32 [B, R, H, D]
    lse: Tensor  # fp32 [B, R, H]

    @classmethod
    def of(cls, call: AttentionCall, count: int) -> Audit:
        rows = sample_rows(call.layout, count, call.q.device)
        bias = call.key_bias
        bias = None if bias is None else bias.expand(len(call.q), -1)
        return cls(call, bias, rows, *exact_rows(call.q, call.k, call.v, rows, scale=call.scale, key_bias=bias))

    def record(self, name: str, asked: float | None, result: Tensor, job: Job | None) -> Record:
        """A result held against the exact rows. job: None for what the model itself does"""
        call = self.call
        errors = relative_l2(result.index_select(1, self.rows), self.out)
        step, layer = call.forward.position.step, call.layer
        if job is None:
            return Record(name, asked, step, layer, _per_head(errors))
        if job.used is None:  # the method has computed everything
            return Record(name, asked, step, layer, _per_head(errors), (1.0,) * errors.shape[1], 1.0, 1.0)
        share = recall(job.used, call.q, call.k, self.rows, self.lse, scale=call.scale, key_bias=self.bias)
        density, kept = kept_shares(job.used, call.layout.video)
        return Record(name, asked, step, layer, _per_head(errors), _per_head(share), density, kept)


def _per_head(found: Tensor) -> tuple[float, ...]:
    """[B, H] -> mean over the batch."""
    return tuple(found.mean(0).tolist())


def _steps(count: int, total: int) -> tuple[int, ...]:
    """Evenly spread, not at the ends: the first steps of a run stay dense with every preset."""
    count = min(count, total) or total
    return tuple(int((i + 0.5) * total / count) for i in range(count))


def _layers(count: int, total: int) -> tuple[int, ...]:
    """Evenly spread from the first to the last: whether those two must stay dense is what one wants to know."""
    count = min(count, total) or total
    return tuple(round(i * (total - 1) / max(1, count - 1)) for i in range(count))


def _plain(call: AttentionCall) -> Callable[..., Tensor]:
    """Dense attention on `call`, or on other tensors, with no hook asked."""

    def dense(q, k, v, mask, layout) -> Tensor:
        q, k, v, mask = (call.q, call.k, call.v, call.mask) if q is None else (q, k, v, mask)
        if mask is not None:
            mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
            mask = mask.to(q.dtype) if mask.is_floating_point() else mask.bool()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scale).transpose(1, 2)

    return dense
