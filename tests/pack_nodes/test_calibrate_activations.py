"""Calibrate Activations and Load Activation Statistics as nodes."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def nodes(comfy):
    """The module under test."""
    from interspatial.nodes import calibrate_activations

    return calibrate_activations


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan_odd"]


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "activation_stats", raising=False)
    folder_paths.filename_list_cache.pop("activation_stats", None)
    yield tmp_path / "activation_stats"
    folder_paths.filename_list_cache.pop("activation_stats", None)
    folder_paths.folder_names_and_paths.pop("activation_stats", None)


def calibrated(nodes, tiny, model=None, positive=None, **settings):
    model = tiny.model() if model is None else model
    latent, positive = {"samples": tiny.samples()}, positive or tiny.prompt(1)
    settings = {"steps": 2, "seed": 3, "noise_parts": 2, **settings}
    return nodes.CalibrateActivations.execute(model, positive, latent, **settings)


def test_statistics_a_picture_and_a_report(nodes, tiny):
    out = calibrated(nodes, tiny, products=False)
    found, picture, report = out.args
    assert found.about["model"] == "WanModel" and found.about["prompts"] == 1 and found.bins == 2
    assert "blocks.1.ffn.2" in found.layers and all(stats.gram is None for stats in found.layers.values())
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.std() > 0.01
    assert report.splitlines()[0].startswith("WanModel: layers: 20, blocks: 2, runs: 1")
    assert set(out.ui) >= {"images", "text"}


def test_products_are_kept(nodes, tiny):
    stats = calibrated(nodes, tiny).args[0].layers["blocks.0.self_attn.q"]
    rows = stats.peak.shape[1]
    assert stats.gram.shape == (rows, rows)
    torch.testing.assert_close(stats.gram.diagonal(), stats.power.mean(0), rtol=1e-4, atol=1e-6)


def test_the_statistics_make_a_mask_that_runs(nodes, tiny):
    from interspatial.models.host.quant_trial import coded_layers, float_weight, linear_layers
    from interspatial.models.quant.format import FORMATS
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    plain, found = sample(model, tiny), calibrated(nodes, tiny, model).args[0]
    network = model.get_model_object("diffusion_model")
    coded = {name: FORMATS["vidit_q"].encode(float_weight(layer, torch.device("cpu")), 8, found.layers[name])
             for name, layer in linear_layers(network).items()}  # fmt: skip
    assert all(each.basis.mask is not None for each in coded.values())
    with coded_layers(network, coded, 16):
        out = sample(model, tiny)
    assert 0 < float((out - plain).norm() / plain.norm()) < 0.05


def test_the_model_stays_as_it_was(nodes, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    plain = sample(model, tiny)
    calibrated(nodes, tiny, model)
    assert host.patches_of(model) == ()
    assert torch.equal(sample(model, tiny), plain)


def test_combined_prompts_are_sampled_one_by_one(nodes, tiny):
    """Each with the next seed; so the first of two gives what it gives alone."""
    one = calibrated(nodes, tiny).args[0]
    two = calibrated(nodes, tiny, positive=tiny.prompt(1) + tiny.prompt(4)).args[0]
    second = calibrated(nodes, tiny, positive=tiny.prompt(4), seed=4).args[0]
    assert two.about["runs"] == two.about["prompts"] == 2
    for layer, stats in two.layers.items():
        assert torch.equal(stats.peak, torch.maximum(one.layers[layer].peak, second.layers[layer].peak))


def test_parts_of_one_prompt_stay_together(comfy):
    from interspatial.models.host.prompts import each_prompt

    a, b = ["text a", {}], ["text b", {"pooled_output": 1}]
    early, late = ["text a", {"start_percent": 0.0, "end_percent": 0.5}], ["text b", {"start_percent": 0.5}]
    assert each_prompt([a, b]) == [[a], [b]]
    assert each_prompt([early, late]) == [[early, late]]
    assert each_prompt([a, ["text b", {"area": (4, 4, 0, 0)}]]) == [[a, ["text b", {"area": (4, 4, 0, 0)}]]]


def test_a_saved_file_is_listed_and_loaded(nodes, tiny, folder):
    from interspatial.models.host.calibration_files import calibration_files

    assert calibration_files() == []
    found, picture, report = calibrated(nodes, tiny, filename="tiny one").args
    assert calibration_files() == ["tiny one.safetensors"]
    assert report.splitlines()[-1].startswith("saved as tiny one.safetensors, ")
    loaded, again, words = nodes.LoadActivations.execute("tiny one.safetensors").args
    assert loaded.about == found.about and list(loaded.layers) == list(found.layers)
    assert words.splitlines() == report.splitlines()[:-1] and again.shape[-1] == picture.shape[-1]
    before = nodes.LoadActivations.fingerprint_inputs("tiny one.safetensors")
    assert nodes.LoadActivations.fingerprint_inputs("tiny one.safetensors") == before
    calibrated(nodes, tiny, filename="tiny one")
    assert nodes.LoadActivations.fingerprint_inputs("tiny one.safetensors") != before


def test_a_foreign_file_is_named(nodes, folder):
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({"x": torch.zeros(3)}, folder / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors cannot be used: it holds no activation statistics"):
        nodes.LoadActivations.execute("other.safetensors")


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "con?", " "])
def test_names_that_are_no_file_names_are_refused_before_the_run(nodes, name):
    answer = nodes.CalibrateActivations.validate_inputs(filename=name)
    assert answer.startswith("Calibrate Activations: ") and "is no name for a file. Accepted" in answer
    assert nodes.CalibrateActivations.validate_inputs(filename="wan 14b") is True


def test_a_model_that_overflows_is_explained(nodes, tiny):
    model = tiny.model()
    layer = model.get_model_object("diffusion_model").get_submodule("blocks.0.ffn.0")
    before = layer.bias.data.clone()
    try:
        layer.bias.data[3] = torch.inf
        said = r"^Calibrate Activations: what enters layer blocks\.0\.ffn\.2 is not finite.* in step 1 of run 1\."
        with pytest.raises(ValueError, match=said):
            calibrated(nodes, tiny, model, steps=4)
    finally:
        layer.bias.data.copy_(before)


def test_a_model_without_such_layers_is_refused_before_the_run(nodes, tiny, monkeypatch):
    monkeypatch.setattr(nodes, "linear_layers", lambda model: {})
    with pytest.raises(ValueError, match=r"^Calibrate Activations: WanModel has no linear layers.*Accepted: "):
        calibrated(nodes, tiny)


def test_an_interrupt_ends_the_run(nodes, tiny, monkeypatch):
    import comfy.model_management as management

    monkeypatch.setattr(management, "interrupt_processing", True)
    with pytest.raises(management.InterruptProcessingException):
        calibrated(nodes, tiny)
