"""Refine Quantized Model as a node: what it writes, what it takes up again, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from interspatial.tests.models.tinies import BY_NAME, sample
from interspatial.tests.models.tiny_dits import WAN
from safetensors.torch import load_file, save_file

TINY = BY_NAME["wan_odd"]
CONFIG = {"config": json.dumps({"transformer": {key: WAN[key] for key in ("text_dim", "freq_dim")}})}
RUN = {"steps": 2, "seed": 5, "iterations": 12}


@pytest.fixture
def nodes(comfy, inference):
    from interspatial.nodes import refine

    return refine


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI with the tiny Wan, plain.safetensors, and of it in 2 bits, two.safetensors."""
    import folder_paths
    from interspatial.models.quant.format import FORMATS
    from interspatial.models.quant.layers import quantised_layers
    from interspatial.models.quant.weights_file import layer_tensors

    place = tmp_path / "diffusion_models"
    place.mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(place)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in TINY.model().model.diffusion_model.state_dict().items()}
    save_file(tensors, place / "plain.safetensors", CONFIG)
    form = replace(FORMATS["vq4"], fit=False)
    for layer in quantised_layers((name, tuple(x.shape)) for name, x in tensors.items()):
        tensors.update(layer_tensors(layer, form.encode(tensors.pop(f"{layer}.weight"), 2), 16))
    save_file(tensors, place / "two.safetensors", CONFIG)
    yield place
    folder_paths.filename_list_cache.pop("diffusion_models", None)


@pytest.fixture
def plain(folder, inference):
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(folder / "plain.safetensors"))


def refined(nodes, model, file="two.safetensors", **given):
    positive = [*TINY.prompt(1), *TINY.prompt(3)]
    return nodes.RefineQuantized.execute(model, file, positive, {"samples": TINY.samples()}, **{**RUN, **given}).args


def off(model, plain) -> float:
    """Relative error of a run, with a prompt that was not learned from."""
    prompts = (TINY.prompt(8), TINY.prompt(2))
    truth = sample(plain, TINY, prompts=prompts)
    return float((sample(model, TINY, prompts=prompts) - truth).norm() / truth.norm())


def test_a_new_file_of_the_same_size_that_is_nearer_to_the_model(nodes, folder, plain):
    from interspatial.models.host.quant_loading import load_quantised_model

    before = (folder / "two.safetensors").read_bytes()
    model, report = refined(nodes, plain)
    assert report.startswith("two_refined.safetensors: 2 blocks") and "blocks.1: " in report
    assert (folder / "two.safetensors").read_bytes() == before
    assert sorted(x.name for x in folder.iterdir()) == ["plain.safetensors", "two.safetensors",
                                                        "two_refined.safetensors"]  # fmt: skip
    old, new = (load_file(folder / name) for name in ("two.safetensors", "two_refined.safetensors"))
    shapes = [{name: (x.dtype, x.shape) for name, x in tensors.items()} for tensors in (old, new)]
    assert shapes[0] == shapes[1]
    assert all(torch.equal(x, new[name]) for name, x in old.items() if not name.startswith("blocks."))
    assert not torch.equal(old["blocks.1.ffn.0.weight"], new["blocks.1.ffn.0.weight"])
    assert not torch.equal(old["blocks.1.ffn.0.bias"], new["blocks.1.ffn.0.bias"])
    # 0.77 and 0.81 with one thread and with two: sums in another order choose other codes
    assert off(model, plain) < 0.9 * off(load_quantised_model(str(folder / "two.safetensors")), plain)
    again = refined(nodes, plain)[1]
    assert "from an earlier run" in again.splitlines()[0] and again.splitlines()[1:] == report.splitlines()[1:]


def test_a_stopped_run_goes_on_at_the_block(nodes, folder, plain, monkeypatch):
    import comfy.model_management
    from interspatial.models.host import refining

    whole = refined(nodes, plain, name="whole")[1]
    learn, begun = refining.refine_block, []

    def stopped(*given):
        begun.append(1)
        if len(begun) == 2:
            raise comfy.model_management.InterruptProcessingException
        return learn(*given)

    monkeypatch.setattr(refining, "refine_block", stopped)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        refined(nodes, plain, name="parts")
    assert not (folder / "parts.safetensors").exists()
    assert not comfy.model_management.in_training and torch.is_inference_mode_enabled()
    report = refined(nodes, plain, name="parts")[1]
    assert len(begun) == 3 and report.splitlines()[1:] == whole.splitlines()[1:]
    one, two = (load_file(folder / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(x, two[name]) for name, x in one.items())


def test_scales_and_biases_of_a_format_without_a_codebook(nodes, folder, plain):
    from interspatial.models.quant.format import FORMATS
    from interspatial.models.quant.layers import quantised_layers
    from interspatial.models.quant.weights_file import layer_tensors

    tensors = load_file(folder / "plain.safetensors")
    for layer in quantised_layers((name, tuple(x.shape)) for name, x in tensors.items()):
        tensors.update(layer_tensors(layer, FORMATS["rtn"].encode(tensors.pop(f"{layer}.weight"), 2), 16))
    save_file(tensors, folder / "rough.safetensors", CONFIG)
    refined(nodes, plain, "rough.safetensors")
    new = load_file(folder / "rough_refined.safetensors")
    assert torch.equal(new["blocks.0.ffn.0.weight"], tensors["blocks.0.ffn.0.weight"])
    assert not torch.equal(new["blocks.0.ffn.0.weight_scale"], tensors["blocks.0.ffn.0.weight_scale"])


def test_refusals(nodes, folder, plain):
    with pytest.raises(ValueError, match=r"Refine Quantized Model: plain.*no layers in the formats of this pack"):
        refined(nodes, plain, "plain.safetensors")
    coded = nodes.load_quantised_model(str(folder / "two.safetensors"))
    with pytest.raises(ValueError, match="the model is quantised itself"):
        refined(nodes, coded)
    with pytest.raises(ValueError, match="another model: layer"):
        refined(nodes, BY_NAME["ltxv"].model())
    (folder / "two_refined.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match="there already"):
        refined(nodes, plain)
    assert (folder / "two_refined.safetensors").read_bytes() == b"mine"
    assert "no name for a file" in nodes.RefineQuantized.validate_inputs(name="a/b")


def test_without_a_latent_a_small_one_is_taken(nodes, folder, plain):
    from interspatial.models.host.sampling import SMALL, small_latent

    assert small_latent(plain)["samples"].shape == (1, TINY.latent[1], *SMALL)
    _, report = nodes.RefineQuantized.execute(plain, "two.safetensors", TINY.prompt(1), **{**RUN, "steps": 1}).args
    assert "blocks.1: " in report
