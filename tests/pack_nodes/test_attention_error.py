"""Measure Attention Error as a node: widgets, outputs, what it says when nothing can be measured."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.attention_error import MeasureAttentionError

    return MeasureAttentionError


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan"]


def measure(node, tiny, model=None, **settings):
    settings = {"steps": 2, "block_side": 2, "methods": "draft", "densities": "0.5, 0.25", **settings}
    model = tiny.model() if model is None else model
    return node.execute(model, tiny.prompt(1), {"samples": tiny.samples()}, **settings)


def test_four_outputs_and_both_pictures_on_the_node(node, tiny):
    out = measure(node, tiny, negative=tiny.prompt(2), cfg=3.0)
    picture, looks, report, data = out.args
    for image in (picture, looks):
        assert image.shape[0] == 1 and image.shape[-1] == 3 and image.shape[2] >= 900
        assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
    assert len(out.ui["images"]) == 2 and out.ui["text"] == (report,)
    assert "3 x 4 x 6 video tokens, 72 in all" in report
    assert "step 0, 1 of 2, layer 0, 1 of 2, both from 0" in report
    assert report.count("| draft ") == 2 and report.count("| this model ") == 1
    records = json.loads(data)["records"]
    assert {(r["name"], r["asked"]) for r in records} == {("this model", None), ("draft", 0.5), ("draft", 0.25)}
    assert len(records) == 2 * 2 * 3


@pytest.mark.parametrize("sampler", ["euler", "heun", "lcm"])
def test_calls_that_a_sampler_adds_to_a_step_are_not_counted(node, tiny, sampler):
    records = json.loads(measure(node, tiny, sampler=sampler, steps=3, measured_steps=2).args[3])["records"]
    assert [r["step"] for r in records if r["asked"] == 0.5] == [0, 0, 2, 2]  # two layers


def test_video_with_sound_is_measured(node, comfy):
    from interspatial.tests.models.tinies import BY_NAME

    assert "3 x 4 x 6 video tokens, 72 in all" in measure(node, BY_NAME["ltxav"]).args[2]


def test_the_same_seed_measures_the_same(node, tiny):
    def errors(seed):
        records = json.loads(measure(node, tiny, seed=seed).args[3])["records"]
        return [record["errors"] for record in records if record["name"] == "draft"]

    assert errors(1) == errors(1)
    assert errors(1) != errors(2)


def test_the_report_of_a_patch_below_is_part_of_the_report(node, tiny):
    from interspatial.nodes.speed import SparseVideoAttention

    sparse = SparseVideoAttention.execute(tiny.model(), {"method": "draft", "density": 0.25}, min_tokens=0,
                                          dense_layers="", first_dense_steps=0, block_side=2).args[0]  # fmt: skip
    report = measure(node, tiny, sparse, methods="draft", densities="0.25", block_order="tile").args[2]
    assert "sparse 2/2 layers, 2/2 steps" in report
    rows = {line.split("|")[1].strip(): line.split("|") for line in report.splitlines() if line.startswith("| ")}
    assert float(rows["this model"][5]) == pytest.approx(float(rows["draft"][5]), rel=0.02)


def test_frames_of_a_vae_lie_under_the_looks(node, tiny):
    class Vae:
        seen = None

        def decode(self, samples):
            self.seen = samples.shape
            return torch.ones(1, 9, 64, 96, 3)

    vae = Vae()
    bright = measure(node, tiny, vae=vae).args[1]
    assert tuple(vae.seen) == tiny.latent
    assert not torch.equal(bright, measure(node, tiny).args[1])


def test_a_picture_model_is_measured_too(node, comfy):
    from interspatial.tests.models.tinies import BY_NAME

    flux = BY_NAME["flux"]
    assert "1 x 4 x 6 video tokens, 31 in all" in measure(node, flux).args[2]


def test_says_why_no_method_could_be_measured(node, tiny, monkeypatch):
    from interspatial.models.attention import METHODS

    monkeypatch.setattr(METHODS["draft"], "why_not", lambda self, call: "not today")
    with pytest.raises(ValueError, match=r"^Measure Attention Error: no method could be measured \(draft: not today\)"):
        measure(node, tiny)


def test_says_why_no_call_could_be_measured(node, tiny, monkeypatch):
    from interspatial.models.host import hooks

    monkeypatch.setattr(hooks, "family_of", lambda model: None)
    with pytest.raises(ValueError, match=r"no method could be measured .*WanModel is not a model this pack knows"):
        measure(node, tiny)


def test_the_interrupt_ends_it(node, tiny):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        measure(node, tiny)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"methods": "drafts"}, "'drafts' is none. Accepted: all, or some of"),
        ({"densities": "0.5, 2"}, "'2' is none. Accepted: numbers above 0 and at most 1"),
    ],
)
def test_bad_lists_are_refused_before_the_run(node, inputs, said):
    answer = node.validate_inputs(**inputs)
    assert answer.startswith("Measure Attention Error: ") and said in answer


def test_the_defaults_are_accepted(node):
    inputs = {widget.id: widget for widget in node.define_schema().inputs}
    assert node.validate_inputs(inputs["methods"].default, inputs["densities"].default) is True
