"""Attention calls as the pack's methods get them from a sampling run, on given q, k and v."""
# B batch   N tokens   H heads   D head dim

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from interspatial.kernels.block_attend import block_attend
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.tuned_tiles import KNOWN
from interspatial.models.attention import METHODS, Job, Method
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.calibrate import Calibration
from interspatial.models.attention.pattern_findings import Findings
from interspatial.models.attention.patterns import HEADS
from interspatial.models.call import AttentionCall
from interspatial.models.forward import Branch, Forward
from interspatial.models.layout import TokenLayout
from interspatial.models.report import Card, Report
from interspatial.models.run import Run
from interspatial.models.schedule import Schedule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.stage import Bench

STEPS = 20
STRIPS = Blocks("strip")  # what Sparse Video Attention takes unless it is told otherwise
CALIBRATED_ROWS = 128  # of the table that Sparse-vDiT goes by here; its node takes 256 over many calls


@dataclass
class Sampling:
    """One run in which the same attention is called step after step; one prompt for every row of the batch.

    q, k, v: [B, N, H, D]
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.run = Run(Schedule([1 - i / STEPS for i in range(STEPS + 1)], lambda percent: 1.0 - percent), Report())

    def call(self, step: int) -> AttentionCall:
        """The call of that step; steps come in order, one call each."""
        self.run.begin_call(1 - step / STEPS)
        batch = len(self.q)
        branches = tuple(Branch(f"prompt {i}", i, slice(i, i + 1)) for i in range(batch))
        forward = Forward(None, self.layout, batch, branches, self.run.position, stacks={"blocks": 1})
        tally = self.run.report.tally("bench", Card("sparse", "sparse"))
        return AttentionCall(self.q, self.k, self.v, None, None, self.layout, 0, forward, self.run, "bench", tally,
                             self._dense)  # fmt: skip

    def _dense(self, q: Tensor | None, k: Tensor | None, v: Tensor | None, *_) -> Tensor:
        q, k, v = (self.q, self.k, self.v) if q is None else (q, k, v)
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class Planned(Job):
    """A job whose kernel does nothing, so that what remains is planning. Its results hold no attention."""

    def run(self, plan: BlockPlan, *, tail: object = "asked", reshape: object = None, return_lse: bool = False):
        self.used = plan
        out = torch.empty_like(self.call.q)  # a method may work in the memory of a result
        return (out, self._lse()) if return_lse else out

    def _lse(self) -> Tensor:
        """In the place of what a dense pass would find; far above all logits, so that no mass is infinite."""
        return torch.full(self.call.q.shape[:3], 20.0, device=self.call.q.device)


def method_of(name: str, density: float | None, sampling: Sampling, **settings: object) -> Method:
    """The method at a density, or by its own rule (None). Sparse-vDiT gets a table calibrated on these q, k, v."""
    if name == "sparse_vdit":
        findings = Findings(HEADS, bins=1)
        Calibration(findings, STRIPS, CALIBRATED_ROWS).attend(sampling.call(0))
        settings["pattern"] = findings.table(density or 0.3)
    return METHODS[name](density=density or 0.0, **settings)


@dataclass
class Steady:
    """A method in the second step of a run, where it does what all later steps do.

    tail: see `block_attend`
    """

    sampling: Sampling
    method: Method
    density: float | None
    tail: str | None = "row"
    later: AttentionCall = field(init=False)
    plan: BlockPlan | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.first = self.sampling.call(0)

    def begin(self, job_class: type[Job] = Job) -> Tensor:
        """The first step's call."""
        return self.method.attend(job_class(self.first, STRIPS, self.tail, self.density))

    def go_on(self) -> None:
        """To the second step."""
        self.later = self.sampling.call(1)

    def attend(self, job_class: type[Job] = Job) -> Tensor:
        """A later step's call, as often as wanted; it keeps the plan that it used."""
        job = job_class(self.later, STRIPS, self.tail, self.density)
        out = self.method.attend(job)
        self.plan = job.used
        return out


def steady(name: str, density: float | None, sampling: Sampling, tail: str | None = "row", **settings) -> Steady:
    """The method, its first step behind it."""
    made = Steady(sampling, method_of(name, density, sampling, **settings), density, tail)
    made.begin()
    made.go_on()
    return made


def remember_tiles(bench: Bench) -> None:
    """What the tuner finds in one stage, later ones of the same run of the bench need not find again."""
    KNOWN.remember_in(bench.path.parent / "tuned_tiles.json")


def backend_of(device: str) -> str:
    """Of block attention: the kernel on a GPU, so that nothing else runs in its name; else the one that always runs."""
    return "gather" if device == "cpu" else "triton"


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, tail: str | None, device: str) -> Tensor:
    return block_attend(q, k, v, plan, tail=tail, backend=backend_of(device))
