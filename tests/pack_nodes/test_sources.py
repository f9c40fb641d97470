"""Puppet Scene and Load Tiny Text Encoder as nodes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def sources(comfy):
    from interspatial.nodes import sources

    return sources


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch):
    """An own text_encoders folder."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("text_encoders", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("text_encoders", None)


def test_a_scene_gives_every_output_its_type_and_size(sources):
    out = sources.PuppetScene.execute(3, "walk left", 5, puppets=2, shirt="red", balls=1, width=96, height=64).args
    video, images, mask, depth, flow, parts, audio, caption, world = out
    for picture in (images, depth, flow, parts):
        assert picture.shape == (5, 64, 96, 3)
        assert picture.min() >= 0 and picture.max() <= 1
    assert mask.shape == (5, 64, 96) and 0.02 < mask.mean() < 0.5
    assert video.get_dimensions() == (96, 64)
    assert audio["waveform"].shape == (1, 2, round(5 / 16 * audio["sample_rate"]))
    assert caption.count("in a red") == 2
    assert world.joints.shape == (5, 2, 24, 3)


def test_the_same_seed_is_the_same_scene(sources):
    first, again, other = (
        sources.PuppetScene.execute(seed, "any", 3, width=64, height=64).args[1] for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_encoder_of_another_kind_is_named(sources, folder):
    save_file({"a": torch.zeros(1)}, folder / "clip_l.safetensors")
    with pytest.raises(ValueError, match=r"clip_l\.safetensors is a text encoder of another kind.*Load CLIP"):
        sources.LoadTinyTextEncoder.execute("clip_l.safetensors")


def test_a_truncated_encoder_is_named_and_not_listed(sources, folder):
    from interspatial.models import host

    save_file({"a": torch.zeros(64)}, folder / "whole.safetensors", {"interspatial_text_encoder": json.dumps({})})
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:60])
    assert host.text_encoder_files() == ["whole.safetensors"]
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read.*copy it again"):
        sources.LoadTinyTextEncoder.execute("cut.safetensors")
