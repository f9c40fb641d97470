"""Calibrate Sparse Pattern and Load Sparse Pattern as nodes, and the sampling they do themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture
def nodes(comfy):
    """The module under test."""
    from interspatial.nodes import calibrate

    return calibrate


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan_odd"]


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "sparse_patterns", raising=False)
    folder_paths.filename_list_cache.pop("sparse_patterns", None)
    yield tmp_path / "sparse_patterns"
    folder_paths.filename_list_cache.pop("sparse_patterns", None)
    folder_paths.folder_names_and_paths.pop("sparse_patterns", None)


SETTINGS = {"steps": 2, "seed": 3, "block_order": "tile", "block_side": 2, "noise_parts": 2}


def calibrated(nodes, tiny, model=None, **settings):
    model = tiny.model() if model is None else model
    latent = {"samples": tiny.samples()}
    return nodes.CalibrateSparsePattern.execute(model, tiny.prompt(1), latent, **{**SETTINGS, **settings})


def test_a_pattern_a_picture_and_a_report(nodes, tiny):
    out = calibrated(nodes, tiny, density=0.4)
    table, picture, report = out.args
    assert table.network.class_name == "WanModel" and table.network.layers == 2
    assert table.blocks.order == "tile" and table.blocks.side == 2 and table.density == 0.4
    assert table.calls.sum(0).tolist() == [2, 2]
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.std() > 0.01
    assert report.splitlines()[0].startswith("WanModel of family wan (2 layers")
    assert set(out.ui) >= {"images", "text"}


def test_reference_frames(nodes):
    from interspatial.tests.models.tinies import BY_NAME

    table, _, report = calibrated(nodes, BY_NAME["wan"], what=nodes.BY_LAYER, density=0.8).args
    assert table.by_layer and "frame" in report


def test_the_pattern_runs_in_sparse_video_attention(nodes, tiny):
    from interspatial.models import host
    from interspatial.models.attention import SparseAttention
    from interspatial.models.attention.sparse_vdit import SparseVDiT
    from interspatial.models.report import Card
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    table = calibrated(nodes, tiny, model).args[0]
    sparse = host.attach_attention(model, Card("sparse", "sparse"), SparseAttention(SparseVDiT(pattern=table)))
    out = sample(sparse, tiny)
    assert out.isfinite().all() and not torch.equal(out, sample(model, tiny))
    assert "2/2 layers, 2/2 steps" in host.report_of(sparse)


def test_the_model_stays_as_it_was(nodes, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    plain = sample(model, tiny)
    calibrated(nodes, tiny, model)
    assert host.patches_of(model) == ()
    assert torch.equal(sample(model, tiny), plain)


def test_guidance_measures_the_positive_prompt_alone(nodes, tiny):
    without, guided = calibrated(nodes, tiny), calibrated(nodes, tiny, negative=tiny.prompt(2), cfg=4.0)
    assert torch.equal(without.args[0].calls, guided.args[0].calls)
    first, second = without.args[0].errors[0], guided.args[0].errors[0]  # the first step, where nothing differs yet
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_another_prompt_is_averaged(nodes, tiny):
    model = tiny.model()
    first = calibrated(nodes, tiny, model).args[0]
    both = calibrated(nodes, tiny, model, earlier=first, seed=4).args[0]
    assert both.calls.sum(0).tolist() == [4, 4]
    with pytest.raises(ValueError, match=r"^Calibrate Sparse Pattern: the earlier pattern has other noise"):
        calibrated(nodes, tiny, model, earlier=first, noise_parts=3)


def test_a_saved_pattern_is_listed_and_loaded(nodes, tiny, folder):
    from interspatial.models.host.pattern_files import pattern_files

    assert pattern_files() == []
    table, picture, report = calibrated(nodes, tiny, filename="tiny one").args
    assert pattern_files() == ["tiny one.safetensors"]
    assert report.splitlines()[-1] == "saved as tiny one.safetensors"
    loaded, again, _ = nodes.LoadSparsePattern.execute("tiny one.safetensors").args
    assert torch.equal(loaded.errors, table.errors) and torch.equal(loaded.choice, table.choice)
    assert loaded.network == table.network and again.shape[-1] == picture.shape[-1]
    before = nodes.LoadSparsePattern.fingerprint_inputs("tiny one.safetensors")
    assert nodes.LoadSparsePattern.fingerprint_inputs("tiny one.safetensors") == before
    calibrated(nodes, tiny, filename="tiny one", what=nodes.BY_LAYER)
    assert nodes.LoadSparsePattern.fingerprint_inputs("tiny one.safetensors") != before
    assert nodes.LoadSparsePattern.execute("tiny one.safetensors").args[0].by_layer


def test_a_damaged_file_is_named(nodes, folder):
    folder.mkdir()
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match=r"The sparse pattern .*cut\.safetensors cannot be used: .*calibrate again"):
        nodes.LoadSparsePattern.execute("cut.safetensors")


@pytest.mark.parametrize("name", ["../up", "/root", "a/b", "c:\\d", ".hidden", "dot.", "con?", "a\nb", " "])
def test_names_that_are_no_file_names_are_refused_before_the_run(nodes, name):
    answer = nodes.CalibrateSparsePattern.validate_inputs(filename=name)
    assert answer.startswith("Calibrate Sparse Pattern: ") and "is no name for a file. Accepted" in answer


@pytest.mark.parametrize("name", ["", "wan 14b", "wan_2.2-high.safetensors", "a"])
def test_names_that_are_file_names_pass(nodes, folder, name):
    from interspatial.models.host.pattern_files import new_pattern_path

    assert nodes.CalibrateSparsePattern.validate_inputs(filename=name) is True
    if name:
        assert new_pattern_path(name) == Path(folder) / f"{name.removesuffix('.safetensors')}.safetensors"


def test_a_sparse_model_is_refused(nodes, tiny):
    from interspatial.nodes import speed

    sparse = speed.SparseVideoAttention.execute(tiny.model(), {"method": "draft", "density": 0.3}).args[0]
    with pytest.raises(ValueError, match=r"has Sparse Video Attention on it.*Connect the model from before"):
        calibrated(nodes, tiny, sparse)


def test_a_run_without_video_attention_is_explained(nodes, comfy, tiny, monkeypatch):
    from interspatial.models import families

    model = tiny.model()
    monkeypatch.setattr(families, "FAMILIES", ())
    with pytest.raises(ValueError, match=r"no attention of the video was seen\. The run: .*not a model this pack"):
        calibrated(nodes, tiny, model)


@pytest.mark.parametrize("extras", [{}, {"batch_index": [0, 2]}, {"noise_mask": torch.ones(1, 2, 7, 11) * 0.5}])
def test_sampling_is_that_of_core(comfy, tiny, extras):
    """Bit-equal to KSampler; without a negative prompt, to its guidance of 1."""
    from interspatial.models.host.sampling import sample

    import nodes as core

    model, positive, negative = tiny.model(), tiny.prompt(1), tiny.prompt(2)
    latent = {"samples": tiny.samples(2), "downscale_ratio_spacial": 8, **extras}
    for prompt, cfg in ((negative, 3.0), (None, 1.0)):
        with torch.inference_mode():
            (want,) = core.common_ksampler(model, 3, 2, cfg, "euler", "simple", positive, negative, latent)
        out = sample(model, positive, prompt, latent, seed=3, steps=2, cfg=3.0, sampler="euler", scheduler="simple")
        assert torch.equal(out["samples"], want["samples"])
        assert out.keys() == want.keys()


def test_core_knows_all_that_is_offered(comfy):
    import comfy.samplers
    from interspatial.models.host.sampling import SAMPLERS, SCHEDULERS

    assert set(SAMPLERS) <= set(comfy.samplers.KSampler.SAMPLERS)
    assert set(SCHEDULERS) <= set(comfy.samplers.KSampler.SCHEDULERS)


def test_an_interrupt_ends_the_run(nodes, tiny, monkeypatch):
    import comfy.model_management as management

    monkeypatch.setattr(management, "interrupt_processing", True)
    with pytest.raises(management.InterruptProcessingException):
        calibrated(nodes, tiny)
    assert management.interrupt_processing is False, "ComfyUI's flag is taken back"
