"""Sparse Video Attention and Run Report as nodes."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def speed(comfy):
    from interspatial.nodes import speed

    return speed


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import TINIES

    return next(t for t in TINIES if t.name == "wan")


def patched(speed, model, density=0.4, **settings):
    settings = {"min_tokens": 0, "dense_layers": "", "first_dense_steps": 0, "block_side": 2, **settings}
    return speed.SparseVideoAttention.execute(model, {"method": "draft", "density": density}, **settings).args[0]


def test_patches_a_clone_and_reports(speed, tiny):
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    plain = sample(model, tiny)
    sparse = patched(speed, model)
    assert speed.RunReport.execute(sparse).args[0].startswith("No run of this model")
    changed = sample(sparse, tiny)
    assert not torch.equal(changed, plain)
    assert torch.equal(sample(model, tiny), plain)
    report = speed.RunReport.execute(sparse, {"samples": changed}).args[0]
    assert "2/2 layers" in report and "2/2 steps" in report


def test_the_first_steps_stay_dense(speed, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    sparse = patched(speed, tiny.model(), first_dense_steps=1)
    sample(sparse, tiny)
    assert "1/2 steps" in host.report_of(sparse)
    assert "a dense step by count" in host.report_of(sparse)


def test_defaults_leave_small_clips_alone(speed, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    sparse = speed.SparseVideoAttention.execute(model, {"method": "draft", "density": 0.3}).args[0]
    assert torch.equal(sample(sparse, tiny), sample(model, tiny))
    assert "fewer than 8192 tokens" in host.report_of(sparse)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"dense_layers": "one"}, "'one' is not understood"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start before its end"),
    ],
)
def test_bad_settings_are_refused_before_the_run(speed, inputs, said):
    answer = speed.SparseVideoAttention.validate_inputs(**inputs)
    assert said in answer
    assert answer.startswith("Sparse Video Attention: ")


def test_good_settings_pass(speed):
    answer = speed.SparseVideoAttention.validate_inputs(dense_layers="0-1, -1", start_percent=0.1, end_percent=0.9)
    assert answer is True
