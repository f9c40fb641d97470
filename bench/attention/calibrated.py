"""A Sparse-vDiT table for the tiny text-to-video model, calibrated on a prompt and seed that no bench measures."""

from __future__ import annotations

from interspatial.models import host
from interspatial.models.attention import Blocks
from interspatial.models.attention.calibrate import Calibration
from interspatial.models.attention.pattern_findings import Findings
from interspatial.models.attention.pattern_table import PatternTable
from interspatial.models.attention.patterns import HEADS
from interspatial.models.host.pattern_files import class_name
from interspatial.models.puppet import scene
from interspatial.models.report import Card

from ..inprocess import Settings, conditioning, empty_latent, sample, video_model

NOISE_PARTS = 10


def calibrate(density: float, tail: str | None, blocks: Blocks) -> PatternTable:
    """One dense run of 20 steps."""
    findings = Findings(HEADS, tail, NOISE_PARTS)
    model = video_model("t2v")
    watched = host.attach_attention(model, Card("calibration", "measure"), Calibration(findings, blocks))
    prompt = scene.split_prompts()[1][-1].caption()
    sample(watched, conditioning(prompt), conditioning(""), empty_latent(), Settings(seed=1000))
    return findings.table(density, class_name(model), None)
