"""Calibrations of random attention, for the tests of patterns."""

from __future__ import annotations

from dataclasses import replace

import torch
from interspatial.models.attention.blocks import Blocks
from interspatial.models.attention.calibrate import Calibration
from interspatial.models.attention.pattern_findings import Findings
from interspatial.models.attention.pattern_table import PatternTable
from interspatial.models.attention.patterns import HEADS
from interspatial.models.call import AttentionCall
from interspatial.models.layout import TokenLayout
from interspatial.models.run import Run
from interspatial.tests.models.attention.contract import MIXED, TILES, call_of, new_run


def dense_call(layout: TokenLayout = MIXED, **settings) -> AttentionCall:
    """`call_of`, where the unpatched attention gives zeros."""
    call = call_of(layout, **settings)
    return replace(call, _dense=lambda *_: torch.zeros_like(call.q))


def calibrate(
    findings: Findings, layout: TokenLayout = MIXED, blocks: Blocks = TILES, *, layers: int = 2,
    sigmas: tuple[float, ...] = (1.0, 0.6, 0.3), run: Run | None = None, rows: int = 256, **settings,
) -> Findings:  # fmt: skip
    """The calls of a run go past a calibration."""
    run, method = new_run() if run is None else run, Calibration(findings, blocks, rows)
    for step, sigma in enumerate(sigmas):
        run.begin_call(sigma)
        for layer in range(layers):
            call = dense_call(layout, run=run, layer=layer, seed=10 * step + layer, **settings)
            assert method.why_not(call) is None
            method.attend(call)
    return findings


def table_of(
    layout: TokenLayout = MIXED, blocks: Blocks = TILES, *, patterns=HEADS, density: float = 0.4, bins: int = 3,
    **settings,
) -> PatternTable:  # fmt: skip
    """A table from a calibration."""
    return calibrate(Findings(patterns, bins=bins), layout, blocks, rows=64, **settings).table(density)
