"""Report: counts, reasons logged once, and the line that the user reads."""

from __future__ import annotations

import logging

import pytest
from interspatial.models.report import Card, Report

CARD = Card("sparse", "sparse")


def filled() -> tuple[Report, object]:
    """50 layers over 20 steps: dense in the first step, layers 0 and 49 always dense, 11 % kept elsewhere."""
    report = Report()
    tally = report.tally("patch", CARD)
    for step in range(20):
        for layer in range(50):
            if step == 0:
                report.aside(tally, "first step", layer, step)
            elif layer in (0, 49):
                report.aside(tally, "layers 0 and 49", layer, step)
            else:
                report.ran(tally, layer, step)
                report.note(tally, kept=0.10 if layer % 2 else 0.12)
    return report, tally


def test_line():
    _, tally = filled()
    assert tally.line() == (
        "sparse 48/50 layers, 19/20 steps, kept 11 %, unpatched: first step (50), layers 0 and 49 (38)")
    assert (tally.run, tally.aside) == (19 * 48, 50 + 38)
    assert tally.mean("kept") == pytest.approx(0.11)
    assert tally.mean("absent") is None


def test_each_reason_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "interspatial"):
        filled()
    assert [record.getMessage() for record in caplog.records] == [
        "sparse stands aside: first step", "sparse stands aside: layers 0 and 49"]


def test_line_names_the_most_frequent_reasons():
    report = Report()
    tally = report.tally("patch", CARD)
    for count, reason in ((1, "a"), (4, "b"), (2, "c"), (3, "d"), (1, "e")):
        for _ in range(count):
            report.aside(tally, reason, 0, 0)
    assert tally.line() == "sparse 0/1 layers, 0/1 steps, unpatched: b (4), d (3), c (2), 2 more"


def test_untouched_patch_says_so():
    report = Report()
    report.tally("patch", CARD)
    assert "saw no call" in report.text()


def test_tally_is_per_patch_and_text_has_a_line_for_each():
    report = Report()
    first, second = report.tally("one", CARD), report.tally("two", Card("cache", "cache"))
    assert report.tally("one", CARD) is first
    report.ran(first, 3, 0)
    report.ran(second, None, 0)
    report.ended = "InterruptProcessingException"
    assert report.text().splitlines() == [
        "sparse 1/1 layers, 1/1 steps", "cache 1/1 steps", "the run ended early: InterruptProcessingException"]


def test_details_give_means_by_layer_and_by_step():
    report = Report()
    tally = report.tally("a", Card("sparse", "sparse"))
    report.ran(tally, 0, 0)
    for layer, step, share in ((0, 0, 0.2), (0, 1, 0.4), (1, 0, 0.6)):
        report.detail(tally, "density", share, layer, step)
    by_layer, by_step = report.text().splitlines()[1:]
    assert by_layer == "  density in % by layer: 0: 30, 1: 60"
    assert by_step == "  density in % by step: 0: 40, 1: 40"


def test_facts_stand_in_the_line():
    report = Report()
    tally = report.tally("a", Card("sparse", "sparse"))
    report.ran(tally, 0, 0)
    report.say(tally, "preset", "Wan 480p")
    report.say(tally, "preset", "Wan 720p")
    assert tally.line() == "sparse 1/1 layers, 1/1 steps, preset Wan 720p"
