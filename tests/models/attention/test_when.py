"""What the presets fill in, ramps, and lists of layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from interspatial.models.attention import presets
from interspatial.models.attention.when import Ramp, When, parse_layers
from interspatial.models.schedule import Position, StepWindow


def call(family: str | None, width: int = 5120, frame: int = 3600, steps: int = 20) -> SimpleNamespace:
    return SimpleNamespace(
        q=SimpleNamespace(shape=(1, 10, width // 128, 128)),
        layout=SimpleNamespace(frame_tokens=frame),
        forward=SimpleNamespace(family=family and SimpleNamespace(name=family)),
        run=SimpleNamespace(schedule=SimpleNamespace(steps=steps)),
    )


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (call("wan"), "Wan 720p"),
        (call("wan", frame=1560), "Wan 480p"),
        (call("wan", width=1536), "Wan small"),
        (call("wan_s2v"), "Wan 720p"),
        (call("hunyuan_video"), "HunyuanVideo"),
        (call("wan", steps=8), "few steps"),
        (call("flux"), "any model"),
        (call(None), "any model"),
    ],
)
def test_the_preset_of_a_call(what, name):
    assert presets.preset_of(what).name == name


def test_every_preset_is_of_a_known_family():
    from interspatial.models.families import FAMILIES

    assert set(presets.FAMILIES) <= {family.name for family in FAMILIES}


def test_a_preset_fills_in_what_was_left_open():
    left = When(first=None, dense_layers=None)
    settled = left.resolved(presets.WAN_SMALL, 20)
    assert (settled.first, settled.dense_layers) == (6, (0, 1))
    assert When(first=0, dense_layers=()).resolved(presets.WAN_SMALL, 20) == When(first=0, dense_layers=())
    assert left.resolved(presets.WAN_SMALL, 4).first == 1  # 0.3 x 4 rounded down


def at(step: int, percent: float) -> Position:
    return Position(step, 10, 0, 1 - percent, percent)


def test_a_ramp_in_steps_goes_down_evenly_after_the_dense_steps():
    when = When(first=2)
    densities = [Ramp(steps=3).density(0.2, when, at(step, 0)) for step in range(2, 7)]
    assert densities == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])


def test_a_ramp_in_percent_starts_at_the_window_and_the_slower_ramp_counts():
    when = When(StepWindow(0.2, 1.0), first=0)
    ramp = Ramp(percent=0.4)
    assert [ramp.density(0.2, when, at(9, p)) for p in (0.2, 0.4, 0.6, 0.9)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert Ramp(3, 0.4).density(0.2, when, at(9, 0.4)) == pytest.approx(0.6)
    assert Ramp(3, 0.4).density(0.2, when, at(0, 0.9)) == pytest.approx(0.8)


def test_auto_leaves_the_layers_to_the_preset():
    assert parse_layers(" Auto ") is None
    assert parse_layers("") == ()
    assert parse_layers("0-2, -1") == (0, 1, 2, -1)
