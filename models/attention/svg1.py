"""Sparse VideoGen (arXiv 2502.01776): every head attends to a band, either in space or in time.

Spatial heads see the tokens near them frame after frame, temporal heads their place in the frames before and after.
Which one a head is shows by trying both on some rows, in every call. Differs from the paper: the rows are from all
frames (theirs from the first 10,000 tokens), both bands are tried at the width that is used, the width allows for the
first frame, and temporal heads keep that frame too, not the top rows of all frames.
"""
# B batch   N tokens   H heads   D head dim   R rows   G = B * H   index 0 of two: spatial, 1: temporal

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.block_plan import BlockPlan
from ...kernels.list_map import list_map
from ...kernels.pool_blocks import pool_blocks
from ..call import AttentionCall
from .job import Job
from .own_blocks import between_others
from .registry import Method, method
from .select import MAP_BYTES, keep_all
from .svg1_bands import Bands, make_bands

ROWS = 64  # of the trial, as in the published scripts
# Of the density, at most, for the first frame. On the tiny model, where it is a fifth of the video, keeping it gained
# nothing at density 0.5 and made the error 1.1 times as large at 0.3; of 21 frames it is a twentieth.
FIRST_FRAME_SHARE = 0.25


@method("svg1")
@dataclass(frozen=True)
class SVG1(Method):
    """density: share of the pairs of video tokens, above 0, at most 1; 0: by preset
    first_frame: all keep its keys, where it takes a quarter of the density at most

    A density is met to half a pair of blocks, unless the block around every query takes more.
    """

    density: float = 0.0
    first_frame: bool = True

    label: ClassVar[str] = "Sparse VideoGen"
    summary: ClassVar[str] = "gives each head a band in space or in time, whichever does better on sampled rows"

    @staticmethod
    def inputs(io) -> list:
        return [
            io.Float.Input("density", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip="Share of the pairs of video tokens computed exactly. Lower is faster and further "
                           "from dense; 0.25 to 0.3 as published, 1.0 is dense. 0: the preset of the model family."),
            io.Boolean.Input("first_frame", default=True, optional=True, advanced=True,
                             tooltip="Keep the first frame for all queries, as published for Wan. It counts towards "
                             "the density, and is left out where it would take more than a quarter of it."),
        ]  # fmt: skip

    def plan(self, job: Job) -> BlockPlan:
        if job.density >= 1:
            return keep_all(job.order)
        call, grid = job.call, job.call.layout.grid
        size = job.blocks.side**2 or 64
        first_frame = self.first_frame and 1 / grid[0] <= FIRST_FRAME_SHARE * job.density
        rows = min(ROWS, len(call.layout.video))
        bands: Bands = call.run.state(
            ("svg1 bands", size, first_frame), str(call.q.device), -1, call.layout.key, None,
            lambda: make_bands(grid, size, first_frame, rows).to(call.q.device),
        )  # fmt: skip
        keep = bands.entry <= job.density
        kind = trial_errors(job, bands, keep).argmin(0)
        return plan_of(call, bands, *list_map(keep, bands.longest(job.density)), kind)


def trial_errors(job: Job, bands: Bands, keep: Tensor) -> Tensor:
    """Mean squared error of the sampled rows under both bands: fp32 [2, G].

    What the bands drop has a tail in the trial where it has one in earnest, each row its own: judged without, the tiny
    model's error with the tail was half again as large at density 0.3.

    keep: bool [2, U, V]
    """
    call, video = job.call, job.call.layout.video
    batch, tokens, heads, dim = call.q.shape
    scale = dim**-0.5 if call.scale is None else call.scale
    queries = call.q[:, bands.rows + video.start]
    blocks = [k[q] for k, q in zip(keep, bands.q_block, strict=True)]  # R V
    seen = [kept[:, block] for kept, block in zip(blocks, bands.k_block, strict=True)]  # R, tokens of the video
    pooled = _pooled(job, bands) if job.tail else (None, None)
    out = torch.empty(2, batch, heads, device=call.q.device)
    step = max(1, MAP_BYTES // (8 * len(bands.rows) * tokens))
    for b, start in product(range(batch), range(0, heads, step)):
        part = slice(start, start + step)
        query, key, value = (x[b, :, part].transpose(0, 1).float() for x in (queries, call.k, call.v))
        score = scale * query @ key.transpose(1, 2)
        if job.key_bias is not None:
            score += job.key_bias[b]
        total = score.logsumexp(-1, keepdim=True).nan_to_num(neginf=0)
        score = score.sub_(total).exp_()
        exact = score @ value
        for kind in range(2):
            kept = score.clone()
            kept[..., video.start : video.stop] *= seen[kind]
            row, mass = kept @ value, kept.sum(-1, keepdim=True)
            if pooled[kind]:
                mean_key, mean_value, log_mass = (x[b, part] for x in pooled[kind])
                logit = torch.baddbmm(log_mass[:, None], query, mean_key.transpose(1, 2), alpha=scale)
                rest = (logit - total).exp_().masked_fill_(blocks[kind], 0)
                row, mass = row + rest @ mean_value, mass + rest.sum(-1, keepdim=True)
            out[kind, b, part] = (row / mass.clamp(min=1e-30) - exact).square().mean((1, 2))
    return out.flatten(1)


def _pooled(job: Job, bands: Bands) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For both kinds: mean keys and values of the video's blocks, fp32 [B, H, V, D], and their log mass, [B, H, V]."""
    name, call, start = ("svg1 pooled", id(bands)), job.call, job.call.layout.video.start
    if name not in job.memo:
        tables = torch.where(bands.k_slots < 0, bands.k_slots, bands.k_slots + start)[:, None]
        keys, values = ([pool_blocks(x, slots, job.key_bias) for slots in tables] for x in (call.k, call.v))
        job.memo[name] = [
            (key.transpose(1, 2), value.transpose(1, 2), log_mass.transpose(1, 2))
            for (key, log_mass), (value, _) in zip(keys, values, strict=True)
        ]
    return job.memo[name]


def plan_of(call: AttentionCall, bands: Bands, cols: Tensor, counts: Tensor, kind: Tensor) -> BlockPlan:
    """cols: int32 [2, U, C], video key blocks; counts: [2, U]; kind: int64 [G], 0 or 1"""
    start = call.layout.video.start
    q_slots, k_slots = (torch.where(x < 0, x, x + start) for x in (bands.q_slots, bands.k_slots))
    q_slots, q_live, (first, last) = between_others(call, q_slots, (q_slots >= 0).sum(-1).int())
    k_slots, k_live, (k_first, k_last) = between_others(call, k_slots, (k_slots >= 0).sum(-1).int())
    blocks, device = q_live.shape[1], kind.device
    sinks = torch.cat([torch.arange(*run, device=device) for run in ((0, k_first), (k_last, k_live.shape[1]))])
    lists = torch.zeros(2, blocks, len(sinks) + cols.shape[2], dtype=torch.int32, device=device)
    lists[:, first:last, : len(sinks)] = sinks
    lists[:, first:last, len(sinks) :] = cols + k_first
    kept = torch.zeros(2, blocks, dtype=torch.int32, device=device)
    kept[:, first:last] = counts + len(sinks)
    full = tuple(run for run in ((0, first), (last, blocks)) if run[0] < run[1])
    return BlockPlan(*(x[kind] for x in (q_slots, k_slots, q_live, k_live, lists, kept)), full)
