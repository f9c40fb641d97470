"""Quantize Model and Load Quantized Video Model as nodes: sources, names, files, reports and refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from interspatial.tests.models.tinies import BY_NAME, noise, sample
from interspatial.tests.models.tiny_dits import WAN
from safetensors.torch import load_file, save_file

TINY = BY_NAME["wan"]
CONFIG = {"config": json.dumps({"transformer": {key: WAN[key] for key in ("text_dim", "freq_dim")}})}
FOUR, EIGHT = "ViDiT-Q 4-bit", "ViDiT-Q 8-bit"


@pytest.fixture
def nodes(comfy, inference):
    from interspatial.nodes import quantise

    return quantise


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI with the tiny Wan in 16 bits, plain.safetensors."""
    import folder_paths

    place = tmp_path / "diffusion_models"
    place.mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(place)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in TINY.model().model.diffusion_model.state_dict().items()}
    save_file(tensors, place / "plain.safetensors", CONFIG)
    yield place
    folder_paths.filename_list_cache.pop("diffusion_models", None)


@pytest.fixture
def plain(folder, inference):
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(folder / "plain.safetensors"))


def quantised(nodes, format=FOUR, **options):
    return nodes.QuantizeModel.execute(format, **options).args


def with_lora(model, strength: float = 1.0):
    from interspatial.models.host.layers import with_weights

    return with_weights(model, {f"diffusion_model.{name}.lora_{part}.weight": strength * noise(*shape, seed=9)
                                for name in ("blocks.0.ffn.0", "text_embedding.0")
                                for part, shape in lora_shapes(name).items()})  # fmt: skip


def lora_shapes(name: str) -> dict:
    inputs = 32 if name.startswith("text") else 128
    return {"A": (4, inputs), "B": (128, 4)}


def test_a_file_becomes_a_model(nodes, folder):
    model, name, report = quantised(nodes, source="plain.safetensors")
    assert name == "plain_vidit_q4.safetensors" and (folder / name).is_file()
    assert "vidit_q 4      20" in report and "from an earlier run" not in report
    again = nodes.LoadQuantized.execute(name).args[0]
    assert torch.equal(sample(model, TINY), sample(again, TINY))
    assert "from an earlier run" in quantised(nodes, source="plain.safetensors")[2]


def test_the_report_of_a_run_names_the_formats(nodes, folder):
    from interspatial.models import host

    for format, words in ((FOUR, "ViDiT-Q 4-bit 20 layers, int8 products"), (EIGHT, "int8_tensorwise 20 layers")):
        model = quantised(nodes, format, source="plain.safetensors")[0]
        sample(model, TINY)
        assert words in host.report_of(model)


def test_a_connected_model_and_its_file_give_the_same(nodes, folder, plain):
    of_file = quantised(nodes, name="a", source="plain.safetensors")[1]
    of_model = quantised(nodes, name="b", model=plain)[1]
    a, b = load_file(folder / of_file), load_file(folder / of_model)
    weights = [name for name in a if ".weight" in name and "blocks" in name and "norm" not in name]
    assert a.keys() == b.keys() and len(weights) > 40
    for name in weights:
        torch.testing.assert_close(a[name], b[name], msg=name)
    assert sample(nodes.LoadQuantized.execute("b.safetensors").args[0], TINY).isfinite().all()


def test_loras_are_in_the_file(nodes, folder, plain):
    patched = with_lora(plain)
    sample(patched, TINY)   # loads it: its weights are patched in place now, and must not be patched twice
    quantised(nodes, "ViDiT-Q 8-bit", name="with", model=patched)
    quantised(nodes, "ViDiT-Q 8-bit", name="without", model=plain)
    layer = "blocks.0.ffn.0"
    both = [load_file(folder / f"{name}.safetensors") for name in ("with", "without")]
    from interspatial.models.quant.basis import Basis

    change, base = (Basis(64).original(x[f"{layer}.weight"].float() * x[f"{layer}.weight_scale"]) for x in both)
    delta = noise(128, 4, seed=9) @ noise(4, 128, seed=9)
    assert float((change - base - delta).norm() / delta.norm()) < 0.03
    embedding = both[0]["text_embedding.0.weight"].float() - both[1]["text_embedding.0.weight"].float()
    delta = noise(128, 4, seed=9) @ noise(4, 32, seed=9)
    assert float((embedding - delta).norm() / delta.norm()) < 0.01
    assert same_weights(plain, patched)


def same_weights(plain, patched) -> bool:
    """Nothing was done to the model itself."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    weight = patched.model.diffusion_model.blocks[0].ffn[0].weight
    return torch.equal(weight, TINY.model().model.diffusion_model.blocks[0].ffn[0].weight.to(torch.bfloat16).to(weight))


def test_another_lora_is_another_file(nodes, folder, plain):
    quantised(nodes, name="a", model=with_lora(plain))
    assert "from an earlier run" in quantised(nodes, name="a", model=with_lora(plain))[2]
    with pytest.raises(ValueError, match="there already"):
        quantised(nodes, name="a", model=with_lora(plain, 0.5))
    assert "from an earlier" not in quantised(nodes, name="a", model=with_lora(plain, 0.5), overwrite=True)[2]


def test_what_cannot_be_in_a_file_is_said(nodes, folder, plain):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    report = quantised(nodes, model=ModelSamplingSD3().patch(plain, 3.0)[0])[2]
    assert "not in the file: settings of the model (model_sampling)" in report


def test_a_plan_and_layers_that_stay(nodes, folder):
    from interspatial.models.quant.recipe import Choice, Recipe

    layers = {"blocks.0.ffn.0": Choice("rtn", 3), "blocks.1.ffn.0": Choice("vidit_q", 8)}
    _, name, report = quantised(nodes, source="plain.safetensors", plan=SimpleNamespace(recipe=Recipe(layers)))
    assert name == "plain_mixed.safetensors" and "rtn 3" in report and "all" in report
    _, name, report = quantised(nodes, source="plain.safetensors", keep=r"^blocks\.0\.", name="part")
    assert "kept as they are, as asked: 10 layers" in report
    assert load_file(folder / name)["blocks.0.ffn.0.weight"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="name of no layer"):
        quantised(nodes, source="plain.safetensors", keep="transformer_blocks")


def test_calibration_and_activations(nodes, folder):
    from interspatial.models.quant.stats import LayerStats

    known = SimpleNamespace(layers={"blocks.0.ffn.0": LayerStats(noise(2, 128).abs() + 0.1, noise(2, 128).square())})
    _, name, report = quantised(nodes, source="plain.safetensors", calibration=known, activations="16 bits")
    assert "without statistics: 19 layers" in report
    tensors = load_file(folder / name)
    assert "blocks.0.ffn.0.weight_mask" in tensors
    assert json.loads(tensors["blocks.0.ffn.0.comfy_quant"].numpy().tobytes())["act_bits"] == 16


def test_every_format_has_a_choice(nodes):
    from interspatial.models.quant.format import FORMATS

    assert len(nodes.CHOICES) == sum(len(form.widths) for form in FORMATS.values()) and nodes.DEFAULT in nodes.CHOICES


@pytest.mark.parametrize(("options", "words"), [
    ({}, "one source is needed"), ({"source": "gone.safetensors"}, "gone"),
    ({"source": "plain.safetensors", "name": "../x"}, "no name for a file"),
    ({"source": "plain.safetensors", "name": "plain"}, "not the source"),
    ({"source": "text.safetensors"}, "cannot be read"),
])  # fmt: skip
def test_refusals(nodes, folder, options, words):
    (folder / "text.safetensors").write_text("once upon a time")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=rf"^Quantize Model: .*{words}"):
        quantised(nodes, overwrite=True, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_two_sources_are_refused(nodes, folder, plain):
    with pytest.raises(ValueError, match="one source is needed"):
        quantised(nodes, model=plain, source="plain.safetensors")


def test_a_quantised_model_is_refused(nodes, folder):
    model, name, _ = quantised(nodes, source="plain.safetensors")
    for options in ({"model": model}, {"source": name}):
        with pytest.raises(ValueError, match="quantised already"):
            quantised(nodes, name="twice", **options)


def test_a_model_without_a_file_needs_a_name(nodes, folder):
    with pytest.raises(ValueError, match="Give the new one a name"):
        quantised(nodes, model=TINY.model())


def test_a_folder_that_cannot_be_written(nodes, folder, monkeypatch):
    import os

    def refused(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(ValueError, match=r"Quantize Model: .*Permission denied.*run again to go on"):
        quantised(nodes, source="plain.safetensors")


def test_the_interrupt_ends_it_and_the_next_run_goes_on(nodes, folder, monkeypatch):
    from interspatial.models import host

    class StoppedError(Exception):
        pass

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 8:
            raise StoppedError

    monkeypatch.setattr(host, "check_interrupt", stop)
    with pytest.raises(StoppedError):
        quantised(nodes, source="plain.safetensors")
    assert not (folder / "plain_vidit_q4.safetensors").exists()
    assert "20" in quantised(nodes, source="plain.safetensors")[2]


def test_inputs_are_checked_before_the_run(nodes, folder):
    check = nodes.QuantizeModel.validate_inputs
    assert check(name="", keep="") is True and check(name="fine name", keep="ffn") is True
    assert "no name" in check(name="a/b") and "regular expression" in check(keep="(")


def test_a_file_written_anew_is_read_anew(nodes, folder):
    import os

    first = nodes.LoadQuantized.fingerprint_inputs("plain.safetensors")
    assert first == nodes.QuantizeModel.fingerprint_inputs(source="plain.safetensors", format=FOUR)
    os.utime(folder / "plain.safetensors", ns=(1, 1))
    assert nodes.LoadQuantized.fingerprint_inputs("plain.safetensors") != first
    assert nodes.LoadQuantized.fingerprint_inputs("gone.safetensors") == ""


def test_loading_refuses_in_its_name(nodes, folder):
    save_file({"encoder.conv1.weight": noise(2, 2)}, folder / "vae.safetensors")
    with pytest.raises(ValueError, match=r"^Load Quantized Video Model: .*vae\.safetensors"):
        nodes.LoadQuantized.execute("vae.safetensors")


def test_activations_at_loading(nodes, folder):
    name = quantised(nodes, source="plain.safetensors")[1]
    outs = [sample(nodes.LoadQuantized.execute(name, bits).args[0], TINY) for bits in nodes.AS_WRITTEN]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
