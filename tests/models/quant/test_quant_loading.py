"""Files of quantised models as ComfyUI's MODEL: against its own loader, saved again, mixed, damaged and foreign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from interspatial.tests.models.tinies import BY_NAME, noise, sample
from interspatial.tests.models.tiny_dits import WAN
from safetensors.torch import load_file, save_file

TINY = BY_NAME["wan"]
CONFIG = {"config": json.dumps({"transformer": {key: WAN[key] for key in ("text_dim", "freq_dim")}})}
LAYER = "blocks.0.ffn.0"
SPREAD = ("vidit_q 4", "rtn 3", "lrq 3", "vq4 2")


@pytest.fixture
def plain(comfy, tmp_path) -> Path:
    """The tiny Wan in 16 bits."""
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in TINY.model().model.diffusion_model.state_dict().items()}
    save_file(tensors, tmp_path / "plain.safetensors", CONFIG)
    return tmp_path / "plain.safetensors"


@pytest.fixture
def written(plain, inference):
    """Files of it with a choice for all layers, or one for each."""
    from interspatial.models.host.quant_sources import FileSource
    from interspatial.models.quant.quantise import layers_of, quantise
    from interspatial.models.quant.recipe import Choice, Recipe

    def write(choices, act_bits: int = 8) -> Path:
        source = FileSource(plain)
        layers = list(layers_of(source))
        choices = [choices] if isinstance(choices, str) else choices
        recipe = Recipe({x: Choice.parse(choices[i % len(choices)]) for i, x in enumerate(layers)})
        path = plain.with_name(f"{'_'.join(choices)}_{act_bits}.safetensors")
        quantise(source, recipe, path, act_bits=act_bits)
        return path

    return write


@pytest.fixture
def load(comfy, inference):
    from interspatial.models.host.quant_loading import load_quantised_model

    return lambda path, act_bits=0: load_quantised_model(str(path), act_bits)


def tensors_of(model) -> dict:
    return {name: x.detach().clone() for name, x in model.model.diffusion_model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def kept(model) -> list[tuple[str, int]]:
    from interspatial.models.host.quant_loading import kept_as

    return [(x.name, x.layers) for x in kept_as(model)]


@pytest.mark.parametrize("act_bits", (8, 16))
def test_int8_files_sample_as_in_comfyuis_own_loader(written, load, act_bits):
    import comfy.sd

    path = written("vidit_q 8", act_bits)
    stock = comfy.sd.load_diffusion_model(str(path))
    assert torch.equal(sample(load(path), TINY), sample(stock, TINY))


def test_activations_can_be_chosen_at_loading(written, load):
    eight, sixteen = written(["vidit_q 8", "rtn 4"]), written(["vidit_q 8", "rtn 4"], 16)
    assert not torch.equal(sample(load(eight), TINY), sample(load(sixteen), TINY))
    assert torch.equal(sample(load(eight, 16), TINY), sample(load(sixteen), TINY))
    assert torch.equal(sample(load(sixteen, 8), TINY), sample(load(eight), TINY))
    assert same(tensors_of(load(eight, 16)), tensors_of(load(sixteen)))


def test_it_is_close_to_what_it_was_made_from(plain, written, load):
    import comfy.sd

    exact = sample(comfy.sd.load_diffusion_model(str(plain)), TINY)
    errors = [float((sample(load(written(x)), TINY) - exact).norm() / exact.norm()) for x in ("vidit_q 8", "vidit_q 4")]
    assert errors[0] < errors[1] / 2 and errors[1] < 0.03


def test_a_file_without_quantised_layers_is_comfyuis(plain, load):
    import comfy.sd

    model = load(plain)
    assert kept(model) == []
    assert torch.equal(sample(model, TINY), sample(comfy.sd.load_diffusion_model(str(plain)), TINY))


def mixed(path: Path, plain: Path) -> Path:
    """One layer in each: ours, int8, scaled fp8; the others in 16 bits. path: of a file with all layers in ours"""
    ours, floats = load_file(path), load_file(plain)
    found = {name: x for name, x in floats.items() if name.removesuffix(".weight") != LAYER}
    found |= {name: x for name, x in ours.items() if name.startswith(f"{LAYER}.")}
    for layer, form in (("blocks.1.ffn.0", "int8_tensorwise"), ("blocks.1.ffn.2", "float8_e4m3fn")):
        weight = found.pop(f"{layer}.weight").float()
        int8 = form == "int8_tensorwise"
        scale = weight.abs().amax(1, keepdim=True) / 127 if int8 else weight.abs().amax() / 448
        codes = (weight / scale).round().to(torch.int8) if int8 else (weight / scale).to(torch.float8_e4m3fn)
        marker = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
        found |= {f"{layer}.weight": codes, f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": marker}
    save_file(found, path.with_name("mixed.safetensors"), CONFIG)
    return path.with_name("mixed.safetensors")


def test_a_mixed_file(plain, written, load):
    import comfy.sd

    model = load(mixed(written("vidit_q 4"), plain))
    assert [(name.split(" (")[0], count) for name, count in kept(model)] == [
        ("ViDiT-Q 4-bit", 1), ("int8_tensorwise", 1), ("float8_e4m3fn", 1)]  # fmt: skip
    exact = sample(comfy.sd.load_diffusion_model(str(plain)), TINY)
    assert float((sample(model, TINY) - exact).norm() / exact.norm()) < 0.2


def test_a_checkpoint_with_other_models_in_it(written, load, tmp_path):
    path = written("rtn 4")
    tensors = {f"model.diffusion_model.{name}": x for name, x in load_file(path).items()}
    tensors |= {"first_stage_model.conv.weight": noise(2, 2)}
    save_file(tensors, tmp_path / "whole.safetensors", CONFIG)
    assert same(tensors_of(load(tmp_path / "whole.safetensors")), tensors_of(load(path)))


@pytest.mark.parametrize("choices", (*SPREAD, SPREAD, "vidit_q 8"), ids=str)
def test_weights_stay_through_load_offload_and_save(written, load, choices):
    import comfy.model_management
    import comfy.sd

    path = written(choices, 16)
    model = load(path)
    before = tensors_of(model)
    assert all(torch.equal(before[name], x.to(before[name].dtype)) for name, x in load_file(path).items()
               if not name.endswith("comfy_quant"))  # fmt: skip
    first = sample(model, TINY)
    model.model.to(torch.device("cpu"))
    model.detach()
    comfy.model_management.unload_all_models()
    assert same(before, tensors_of(model)) and torch.equal(sample(model, TINY), first)
    again = path.with_name("saved.safetensors")
    comfy.sd.save_checkpoint(str(again), model, metadata=dict(CONFIG))
    assert same(before, tensors_of(load(again)))
    torch.testing.assert_close(sample(load(again), TINY), first)  # mapped weights lie elsewhere in that file


def test_two_formats_at_once(written, load):
    paths = [written("vidit_q 4"), written("rtn 2")]
    alone = [sample(load(path), TINY) for path in paths]
    models = [load(path) for path in paths]
    for _ in range(2):
        assert all(torch.equal(sample(model, TINY), x) for model, x in zip(models, alone, strict=True))


def test_weights_are_the_mapped_file(written, load, monkeypatch):
    """Loading copies no codes: its peak is the file, which is mapped, and one layer at most."""
    import comfy.utils

    given = {}
    read = comfy.utils.load_torch_file

    def recorded(path, **options):
        tensors, metadata = read(path, **options)
        given.update({name: x.data_ptr() for name, x in tensors.items()})
        return tensors, metadata

    monkeypatch.setattr(comfy.utils, "load_torch_file", recorded)
    model = load(written("vidit_q 4"))
    weights = {name: layer.weight for name, layer in model.model.diffusion_model.named_modules()
               if f"{name}.weight_scale" in given}  # fmt: skip
    assert len(weights) == 20
    assert all(weight._qdata.data_ptr() == given[f"{name}.weight"] for name, weight in weights.items())


def test_a_copy_that_comfyui_asks_for(written, load):
    """Multi-GPU and patching without streaming make one by the loader that is noted on the model."""
    model = load(written("vidit_q 4"), 16)
    make, arguments = model.cached_patcher_init
    copy = make(*arguments, disable_dynamic=True)
    assert torch.equal(sample(copy, TINY), sample(model, TINY))


def changed(path: Path, change, metadata=None) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path.with_name("changed.safetensors"), metadata or CONFIG)
    return path.with_name("changed.safetensors")


def marker(conf: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)


DAMAGES = {
    "unknown format": lambda t: t.update({f"{LAYER}.comfy_quant": marker({"format": "int3_of_tomorrow"})}),
    "unknown of ours": lambda t: t.update({f"{LAYER}.comfy_quant": marker({"format": "interspatial_x", "bits": 4})}),
    "no format": lambda t: t.update({f"{LAYER}.comfy_quant": marker({"bits": 4})}),
    "no marker": lambda t: t.pop(f"{LAYER}.comfy_quant"),
    "no scale": lambda t: t.pop(f"{LAYER}.weight_scale"),
    "no weight": lambda t: t.pop(f"{LAYER}.weight"),
    "another shape": lambda t: t.update({f"{LAYER}.weight_scale": torch.ones(3, 1)}),
    "no layer": lambda t: [t.pop(name) for name in list(t) if name.startswith(f"{LAYER}.")],
    "a wider layer": lambda t: [t.pop(name) for name in list(t) if name.startswith(f"{LAYER}.weight")
                                or name == f"{LAYER}.comfy_quant"] and t.update({f"{LAYER}.weight": noise(128, 144)}),
}  # fmt: skip


@pytest.mark.parametrize("choice", ("rtn 4", "vidit_q 8"))
@pytest.mark.parametrize("what", DAMAGES)
def test_damages_name_the_layer(written, load, what, choice):
    path = changed(written(choice), DAMAGES[what])
    with pytest.raises(ValueError, match=rf"(?s)changed\.safetensors cannot be loaded: .*{LAYER}"):
        load(path)


def test_a_layer_of_another_shape_in_our_format(written, load):
    from interspatial.models.quant.format import FORMATS
    from interspatial.models.quant.weights_file import layer_tensors

    wider = layer_tensors(LAYER, FORMATS["rtn"].encode(noise(128, 144), 4), 8)
    with pytest.raises(ValueError, match=LAYER):
        load(changed(written("rtn 4"), lambda tensors: tensors.update(wider)))


FOREIGN = {
    "lora": {"diffusion_model.blocks.0.ffn.0.lora_A.weight": noise(4, 128)},
    "vae": {"decoder.conv1.weight": noise(2, 2, 1, 1, 1), "encoder.conv1.weight": noise(2, 2, 1, 1, 1)},
    "empty": {},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files(load, tmp_path, what):
    save_file(FOREIGN[what], tmp_path / "foreign.safetensors")
    words = "It is a LoRA" if what == "lora" else "Accepted: safetensors files of diffusion models"
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "foreign.safetensors")


def test_files_that_are_no_safetensors(written, load, tmp_path):
    whole = written("rtn 4").read_bytes()
    for name, data in {"a.ckpt": whole, "cut.safetensors": whole[:-9], "text.safetensors": b"once upon a time"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            load(tmp_path / name)
    with pytest.raises(ValueError, match="absent"):
        load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("text", ("{", "[]", '{"layers": 3}', "{}"))
def test_metadata_that_is_wrong(plain, load, text):
    path = changed(plain, lambda tensors: None, CONFIG | {"_quantization_metadata": text})
    with pytest.raises(ValueError, match="metadata"):
        load(path)


def test_activations_of_other_widths(load):
    with pytest.raises(ValueError, match="4 bits"):
        load("any.safetensors", 4)
