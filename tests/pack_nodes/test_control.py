"""Load Interspatial Adapter, Body and Camera Control and Interspatial Viewer as nodes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from interspatial.models.control.tokens import body_tokens
from interspatial.tests.models.control.made import config_for, hold, random_body, random_network
from interspatial.tests.models.tinies import BY_NAME, noise, sample
from safetensors.torch import save_file

WAN = BY_NAME["wan"]
CONFIG = config_for("wan")


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own models folder of ComfyUI."""
    import folder_paths

    name = "interspatial_adapters"
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, name, raising=False)
    folder_paths.filename_list_cache.pop(name, None)
    (tmp_path / name).mkdir()
    yield tmp_path / name
    folder_paths.filename_list_cache.pop(name, None)
    folder_paths.folder_names_and_paths.pop(name, None)


def write(folder, config=CONFIG, dtype=torch.float32, change=lambda weights: None, metadata=None) -> str:
    weights = {name: x.to(dtype) for name, x in random_network(config).state_dict().items()}
    change(weights)
    about = {"config": json.dumps(config.told())} if metadata is None else metadata
    save_file(weights, folder / "tiny.safetensors", about)
    return "tiny.safetensors"


def load(name: str):
    from interspatial.nodes.control import InterspatialLoadAdapter

    return InterspatialLoadAdapter.execute(name).args[0]


def control(model, adapter, body=None, **inputs):
    from interspatial.nodes.control import InterspatialBodyControl

    return InterspatialBodyControl.execute(model, adapter, body or random_body(), **inputs).args[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_controls_a_model(inference, folder, dtype):
    from interspatial.models import host

    adapter = load(write(folder, dtype=dtype))
    assert adapter.config == CONFIG
    assert next(adapter.network.parameters()).dtype == dtype
    model = control(WAN.model(), adapter, camera=hold())
    found = sample(model, WAN)
    assert found.isfinite().all()
    assert not torch.allclose(found, sample(WAN.model(), WAN), atol=1e-3)
    assert host.report_of(model).startswith("body and camera 2/2 steps, points 100 % in view")
    assert torch.equal(sample(control(WAN.model(), adapter, camera=hold(), strength=0.0), WAN),
                       sample(WAN.model(), WAN))  # fmt: skip


@pytest.mark.parametrize("position", ["additive", "rotary"])
def test_a_loaded_adapter_is_the_one_that_was_saved(folder, position):
    """Through ComfyUI's layers, which cast, the network computes what torch's own layers do."""
    from interspatial.tests.models.control.made import Held, controlled

    config = replace(CONFIG, position=position)
    found = sample(control(WAN.model(), load(write(folder, config)), camera=hold()), WAN)
    wanted = sample(controlled(WAN.model(), Held(random_network(config))), WAN)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_comfyui_loads_the_adapter_with_the_model(folder):
    from interspatial.models.host.adapter_files import KEY

    adapter = load(write(folder))
    base = WAN.model()
    model = control(control(base, adapter), adapter, strength=0.5).clone()
    assert [one.model for one in model.get_additional_models_with_key(KEY)] == [adapter.network]
    assert adapter.network in [one.model for one in model.get_nested_additional_models()]
    assert not base.get_additional_models_with_key(KEY)


@pytest.mark.parametrize(("change", "metadata", "says"), [
    (lambda w: None, {}, "it holds no interspatial adapter: config is missing"),
    (lambda w: None, {"config": "[1]"}, "config is not a list of named settings"),
    (lambda w: None, {"config": '{"transformer": {}}'}, "settings ['transformer'] are not known"),
    (lambda w: w.pop("blocks.0.down.weight"), None, "it lacks the weights of an adapter with its settings: "
     "blocks.0.down.weight"),
    (lambda w: w.update(extra=torch.zeros(1)), None, "it holds more than the weights of an adapter with its settings"),
    (lambda w: w.update({"blocks.0.down.weight": torch.zeros(48, 64)}), None,
     "blocks.0.down.weight is of shape [48, 64], and its settings ask for [48, 128]"),
    (lambda w: w.update({"blocks.0.down.weight": torch.zeros(48, 128, dtype=torch.float8_e4m3fn)}), None,
     "must all be one of F32, F16, BF16")])  # fmt: skip
def test_other_files_are_refused(folder, change, metadata, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        load(write(folder, change=change, metadata=metadata))
    assert "Load Interspatial Adapter: The adapter file" in str(error.value)
    assert "tiny.safetensors" in str(error.value)
    assert "Choose such a file." in str(error.value)


def test_no_safetensors_is_refused(folder):
    (folder / "tiny.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="cannot be used"):
        load("tiny.safetensors")


@pytest.mark.parametrize(("config", "says"), [
    (config_for("ltxv"), "the adapter is for ltxv, and this model is wan"),
    (config_for("wan", host_width=64), "the adapter is for 64 channels, and this model has 128"),
    (config_for("wan", (0, 5)), "the adapter is for a model with more blocks")])
def test_adapters_of_other_models_are_refused_at_the_node(folder, config, says):
    adapter = load(write(folder, config))
    with pytest.raises(ValueError, match=f"Body and Camera Control: {says}.*Load the model that"):
        control(WAN.model(), adapter)


def test_layers_and_percents_are_checked_before_the_run(folder):
    from interspatial.nodes.control import InterspatialBodyControl

    check = InterspatialBodyControl.validate_inputs
    assert check(layers="all") is True
    assert check(layers="0-1; 3", start_percent=0.2, end_percent=0.2) is True
    assert "layers 'some' are not understood. Accepted: all, or block numbers" in check(layers="some")
    assert "start_percent 0.8 lies behind end_percent 0.3" in check(start_percent=0.8, end_percent=0.3)
    adapter = load(write(folder))
    with pytest.raises(ValueError, match="none of the chosen layers has an adapter"):
        control(WAN.model(), adapter, layers="7")


def test_without_a_camera_everybody_is_seen(folder):
    from interspatial.models import host

    model = control(WAN.model(), load(write(folder)))
    sample(model, WAN)
    assert "camera none given, one that holds and sees everybody" in host.report_of(model)
    assert "points 100 % in view" in host.report_of(model)


def test_a_reference_is_seen_and_missed(folder):
    from interspatial.models import host

    adapter = load(write(folder, replace(CONFIG, identity=16)))
    found = []
    for seed in (1, 2):
        model = control(WAN.model(), adapter, camera=hold(), reference={"samples": noise(1, 16, 1, 8, 12, seed=seed)})
        found.append(sample(model, WAN))
        assert "reference" not in host.report_of(model)
    assert not torch.allclose(*found, atol=1e-3)
    model = control(WAN.model(), adapter, camera=hold())
    sample(model, WAN)
    assert "reference none, and the adapter was trained with one" in host.report_of(model)


def test_references_that_do_not_fit_are_refused(folder):
    plain = load(write(folder))
    reference = {"samples": noise(1, 16, 1, 8, 12)}
    with pytest.raises(ValueError, match=r"trained without a reference view\. Leave reference out"):
        control(WAN.model(), plain, reference=reference)
    adapter = load(write(folder, replace(CONFIG, identity=16)))
    with pytest.raises(ValueError, match=r"shape \[1, 4, 8, 12\], accepted: one of 16 channels"):
        control(WAN.model(), adapter, reference={"samples": noise(1, 4, 8, 12)})
    with pytest.raises(ValueError, match="1 people of 11 points in the reference, and 2 of 11 in the video"):
        control(WAN.model(), adapter, reference=reference, reference_body=random_body(1))


def viewed(model, **inputs):
    from interspatial.nodes.interspatial_viewer import InterspatialViewer

    return InterspatialViewer.execute(model, WAN.prompt(1), {"samples": WAN.samples()}, **inputs).args


def test_the_viewer_shows_what_the_layer_sees(folder):
    """With weights that only compare places, tokens listen to the points that are where they are."""
    def places_alone(weights):
        for layer in CONFIG.layers:
            for name in ("q", "k"):
                key = f"blocks.{layer}.interspatial.render.{name}"
                weights[f"{key}.weight"].zero_()
                weights[f"{key}.bias"].fill_(1.0)   # the same query everywhere, turned by its place
                weights[f"blocks.{layer}.interspatial.render.{name}_norm.weight"].fill_(6.0)

    config = replace(CONFIG, width=192, depth_mode="none")
    adapter = load(write(folder, config, change=places_alone))
    body = random_body(1, points=60)
    model = control(WAN.model(), adapter, body, camera=hold())
    picture, right, report = viewed(model, layer=0)
    assert picture.shape[0] == 1
    assert picture.shape[-1] == 3
    assert right > 0.8
    assert "Block 0 at 50% of the noise range" in report
    chance = float(re.search(r"by chance it were ([\d.]+)%", report)[1]) / 100
    assert chance < 0.4
    random = load(write(folder, config))
    assert viewed(control(WAN.model(), random, body, camera=hold()), layer=0)[1] < 0.6


def test_what_the_viewer_cannot_show_is_said(folder):
    adapter = load(write(folder))
    with pytest.raises(ValueError, match=r"Interspatial Viewer: this model has no Body and Camera Control"):
        viewed(WAN.model())
    with pytest.raises(ValueError, match=r"layer 2, and the adapter adds in 2\. Accepted: -2 to 1"):
        viewed(control(WAN.model(), adapter), layer=2)
    with pytest.raises(ValueError, match=r"the adapter did not run at 0\.9 of the noise range.*outside the percent"):
        viewed(control(WAN.model(), adapter, end_percent=0.5), percent=0.9)


def test_loudest_points_are_those_of_float64():
    from interspatial.models.measure.point_listening import Heard, loudest

    q, k = noise(24, 3, 8, seed=1), noise(10, 3, 8, seed=2)
    bias = torch.where(torch.arange(10) == 4, -1e4, 0.0)[None]
    score = torch.einsum("shd,mhd->hsm", q.double(), k.double()) * 8**-0.5 + bias
    share, index = score.softmax(-1).mean(0).max(-1)
    found = loudest(q, k, bias)
    assert torch.equal(found[0], index)
    torch.testing.assert_close(found[1].double(), share, rtol=1e-5, atol=1e-6)
    tokens = body_tokens(random_body(1, 1, 10), hold(1), 4)
    heard = Heard(found[0][None], found[1][None], tokens, (1, 4, 6))
    away = heard.distances(0)
    pixel = (tokens.place[0, :, :2] + 1) / 2 * torch.tensor([6.0, 4.0])
    wanted = (pixel - torch.tensor([2.5, 1.5])).norm(dim=-1)
    torch.testing.assert_close(away[1 * 6 + 2][tokens.usable[0]], wanted[tokens.usable[0]], rtol=1e-4, atol=1e-4)
