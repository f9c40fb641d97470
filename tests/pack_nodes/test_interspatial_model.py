"""Load Interspatial Model and Body and Camera Scene as nodes, up to the sampler."""

from __future__ import annotations

import json
import os

import pytest
import torch
from interspatial.tests.models.tinies import noise, walking
from interspatial.tests.models.tiny_dits import interspatial
from safetensors.torch import save_file

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH is not set", allow_module_level=True)

SCENE = "interspatial_scene"


@pytest.fixture
def ours(comfy):
    from interspatial.nodes import interspatial_model

    return interspatial_model


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own diffusion_models folder with our tiny model and a stranger."""
    import folder_paths

    network = interspatial().model.diffusion_model
    tensors = {key: x.clone() for key, x in network.state_dict().items()}
    save_file(tensors, tmp_path / "ours.safetensors", {"config": json.dumps({"interspatial": network.config.told()})})
    save_file(tensors, tmp_path / "other.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("diffusion_models", None)


def test_from_a_body_to_a_clip(ours, folder, inference):
    import nodes

    model = ours.InterspatialLoadModel.execute("ours.safetensors").args[0]
    scene = walking(12)
    positive, negative, latent = ours.InterspatialScene.execute(
        scene.body, scene.camera, length=9, width=96, height=64, reference={"samples": noise(1, 16, 8, 12)}
    ).args
    assert latent["samples"].shape == (1, 16, 3, 8, 12)
    run = [nodes.common_ksampler(model, 3, 2, cfg, "euler", "simple", positive, negative, latent)[0]["samples"]
           for cfg in (1.0, 4.0)]  # fmt: skip
    assert all(out.isfinite().all() for out in run)
    assert not torch.equal(*run), "the negative has nobody in it"


def test_what_a_scene_holds(ours, inference):
    scene = walking(12)
    behind = {"samples": noise(1, 16, 3, 16, 16)}
    positive, negative, _ = ours.InterspatialScene.execute(
        scene.body, scene.camera, length=9, reference={"samples": noise(1, 16, 8, 12)}, background=behind
    ).args
    found, unpeopled = positive[0][1][SCENE], negative[0][1][SCENE]
    assert found.body.frames == found.camera.frames == 9
    assert (found.camera.height, found.camera.width) == (128, 128)
    assert found.reference.latent.shape == (1, 16, 1, 8, 12)
    assert torch.equal(found.reference.camera.K, scene.camera.K), "the reference is seen by the clip's own camera"
    assert unpeopled.body is None and unpeopled.reference is None
    assert unpeopled.camera is found.camera and unpeopled.background is found.background


def test_length_and_speed(ours, inference):
    """A body of 17 frames in a clip of 9: all of it, or its first half."""
    scene = walking(17)

    def last(**given) -> torch.Tensor:
        positive, _, _ = ours.InterspatialScene.execute(scene.body, scene.camera, length=9, **given).args
        return positive[0][1][SCENE].body.points[:, -1]

    torch.testing.assert_close(last(), scene.body.points[:, 16])
    torch.testing.assert_close(last(fit="trim"), scene.body.points[:, 8])
    torch.testing.assert_close(last(fit="trim", video_fps=8.0), scene.body.points[:, 16])


def test_what_it_says(ours, monkeypatch, inference):
    said = []
    monkeypatch.setattr(ours.host, "show_text", lambda text, node_id: said.append(text))
    scene = walking(9, people=1)
    ours.InterspatialScene.execute(scene.body, length=9)
    ours.InterspatialScene.execute(scene.body, walking(25).camera, length=9, width=96, height=64)
    away = scene.camera.w2c.clone()
    away[:, 2, 3] = -50.0
    ours.InterspatialScene.execute(scene.body, type(scene.camera)(scene.camera.K, away, 64, 96), length=9)
    assert "1 person, 20 points each, 100 % in view" in said[0] and "none given" in said[0]
    assert "camera: 25 frames to 9, stretched" in said[1]
    assert "nobody is in the picture" in said[2]


def test_bad_input_is_said(ours, folder, inference):
    scene = walking()
    with pytest.raises(ValueError, match=r"^Load Interspatial Model: other\.safetensors is no interspatial model"):
        ours.InterspatialLoadModel.execute("other.safetensors")
    picture = {"samples": noise(1, 16, 8, 12)}
    with pytest.raises(ValueError, match=r"^Body and Camera Scene: the reference shows 1 people of 20 points"):
        ours.InterspatialScene.execute(scene.body, reference=picture, reference_body=walking(1, people=1).body)
    with pytest.raises(ValueError, match=r"^Body and Camera Scene: a background_mask without a background"):
        ours.InterspatialScene.execute(scene.body, background_mask=torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match=r"the reference is no latent of a picture or video"):
        ours.InterspatialScene.execute(scene.body, reference={"samples": torch.zeros(1, 64, 100)})


def test_schema(ours):
    for cls in (ours.InterspatialLoadModel, ours.InterspatialScene):
        schema = cls.GET_SCHEMA()
        assert sum(not x.optional for x in schema.inputs) <= 3
        assert schema.description and all(x.tooltip for x in schema.inputs)
