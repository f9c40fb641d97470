"""This pack's own model as a MODEL: samplers, prompts, hooks, caches, quantised files, windows, refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH is not set", allow_module_level=True)

from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, SparseAttention, When
from interspatial.models.control.scene import Background, Reference, Scene, conditions
from interspatial.models.control.tokens import body_tokens
from interspatial.models.report import Card
from interspatial.tests.models.cache.sites_of import at_site
from interspatial.tests.models.tinies import BY_NAME, noise, peopled, sample, walking
from interspatial.tests.models.tiny_dits import interspatial
from safetensors.torch import load_file, save_file

TINY = BY_NAME["interspatial"]
SCENE = "interspatial_scene"


def prompt(scene: Scene | None) -> list:
    return [[torch.zeros(1, 1, 1), {} if scene is None else {SCENE: scene}]]


def psnr(x: torch.Tensor, truth: torch.Tensor) -> float:
    peak = truth.max() - truth.min()
    return float(20 * torch.log10(peak) - 10 * torch.log10((x - truth).square().mean()))


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x - truth).norm() / truth.norm())


@pytest.fixture(scope="module")
def model():
    return interspatial()


@pytest.mark.parametrize("sampler", ("euler", "dpmpp_2m", "uni_pc"))
def test_native_samplers_and_both_prompts(model, sampler):
    import nodes

    scene = peopled()

    def run(positive, negative, cfg=3.0) -> torch.Tensor:
        latent = {"samples": torch.zeros(TINY.latent)}
        with torch.inference_mode():
            return nodes.common_ksampler(model, 3, 3, cfg, sampler, "simple", positive, negative, latent)[0]["samples"]

    out = run(prompt(scene), prompt(scene.unpeopled))
    assert out.isfinite().all() and out.std() > 0.05
    assert relative(run(prompt(scene), prompt(scene)), out) > 1e-3, "the negative prompt counts"
    assert relative(run(prompt(scene.unpeopled), prompt(scene.unpeopled)), out) > 1e-3, "the positive one too"
    assert run(prompt(None), prompt(None)).isfinite().all(), "without any scene it runs too"


def test_two_prompts_in_a_batch_are_two_single_ones(model):
    """Both scenes have the same sizes, so ComfyUI puts them into one batch; alone they are evaluated one by one."""
    scene = peopled()
    other = replace(scene, body=scene.body.at(torch.arange(8, -1, -1)), background=None, reference=None)
    other = replace(other, background=Background(noise(1, 16, 3, 8, 12, seed=8)), reference=scene.reference)
    both = sample(model, TINY, cfg=3.0, prompts=(prompt(scene), prompt(other)))
    first = sample(model, TINY, cfg=1.0, prompts=(prompt(scene), prompt(other)), steps=1)
    second = sample(model, TINY, cfg=1.0, prompts=(prompt(other), prompt(scene)), steps=1)
    one = sample(model, TINY, cfg=3.0, prompts=(prompt(scene), prompt(other)), steps=1)
    assert both.isfinite().all()
    assert relative(one, second + 3.0 * (first - second)) <= 1e-5
    assert relative(first, second) > 1e-3
    rows = sample(model, TINY, batch=2, prompts=(prompt(scene), prompt(scene)))
    assert rows.shape[0] == 2 and rows.isfinite().all()


def sparse(model, density: float):
    method = SparseAttention(METHODS["draft"](density), When(), Blocks("tile", 2))
    return host.attach_attention(model, Card("sparse", "sparse"), method)


def test_sparse_attention_within_frames(model):
    prompts = (prompt(peopled()), prompt(peopled().unpeopled))
    plain = sample(model, TINY, cfg=3.0, prompts=prompts)
    whole, half = sparse(model, 1.0), sparse(model, 0.5)
    assert relative(sample(whole, TINY, cfg=3.0, prompts=prompts), plain) <= 1e-5
    assert "2/2 layers" in host.report_of(whole)
    out = sample(half, TINY, cfg=3.0, prompts=prompts)
    assert out.isfinite().all() and not torch.equal(out, plain)
    assert "kept" in host.report_of(half)


def test_rows_of_a_batch_belong_to_their_prompts(model):
    """Attention sees the frames of both prompts, and each branch says which rows are its own."""
    seen = []

    class Look:
        def why_not(self, call) -> None:
            seen.append((call.q.shape[:2], [b.rows for b in call.branches], [b.rows for b in call.forward.branches]))
            alone = call.only(call.branches[1])
            assert alone.q.shape[0] == 3 and alone.branches[0].rows == slice(0, 3)

        def attend(self, call) -> torch.Tensor:
            return call.dense()

    patched = host.attach_attention(model, Card("look", "measure"), Look())
    both = (prompt(peopled()), prompt(peopled()))
    assert torch.equal(sample(patched, TINY, cfg=3.0, prompts=both), sample(model, TINY, cfg=3.0, prompts=both))
    assert seen == [((6, 24), [slice(0, 3), slice(3, 6)], [slice(0, 1), slice(1, 2)])] * 4


@pytest.mark.parametrize("site", ("output", "last block"))
def test_step_cache(model, site):
    prompts = (prompt(peopled()), prompt(peopled().unpeopled))
    plain = sample(model, TINY, cfg=3.0, prompts=prompts, steps=4)
    assert torch.equal(sample(at_site(model, site, 1), TINY, cfg=3.0, prompts=prompts, steps=4), plain)
    skipping = at_site(model, site, 2)
    out = sample(skipping, TINY, cfg=3.0, prompts=prompts, steps=4)
    assert out.isfinite().all() and relative(out, plain) > 1e-6
    assert "model calls 6 of 8" in host.report_of(skipping)


def written(model, path, **metadata) -> str:
    about = {"interspatial": model.model.diffusion_model.config.told(), "latent": "wan21", "shift": 3.0, **metadata}
    tensors = {key: x.clone() for key, x in model.model.diffusion_model.state_dict().items()}
    save_file(tensors, path, {"config": json.dumps(about)})
    return str(path)


def loaded(path):
    from interspatial.models.host.quant_loading import load_quantised_model

    with torch.inference_mode():
        return load_quantised_model(str(path))


def test_a_file_gives_the_model_back(model, tmp_path):
    again = loaded(written(model, tmp_path / "m.safetensors", shift=5.0))
    assert again.model.diffusion_model.config == model.model.diffusion_model.config
    assert again.model.latent_format.latent_channels == 16
    sampling = again.get_model_object("model_sampling")
    sigma = 5.0 * 0.5 / (1 + 4.0 * 0.5)  # of the middle of the schedule, shifted
    assert abs(float(sampling.sigma(torch.tensor(500.0))) - sigma) < 1e-3
    plain = loaded(written(model, tmp_path / "p.safetensors"))
    prompts = (prompt(peopled()), prompt(peopled()))
    assert torch.equal(sample(plain, TINY, prompts=prompts), sample(model, TINY, prompts=prompts))


@pytest.mark.parametrize(("choice", "least"), [("vidit_q 8", 60.0), ("rtn 4", 40.0)])
def test_quantised_files(model, tmp_path, choice, least):
    from interspatial.models.host.quant_loading import kept_as
    from interspatial.models.host.quant_sources import FileSource
    from interspatial.models.quant.quantise import layers_of, quantise
    from interspatial.models.quant.recipe import Choice, Recipe

    source = FileSource(written(model, tmp_path / "whole.safetensors"))
    layers = list(layers_of(source))
    roles = {layer.split(".", 2)[2] for layer in layers}
    assert {"spatial.q", "temporal.o", "interspatial.render.k", "camera.v", "reference.o", "feed.0", "down"} <= roles
    assert not any("modulation" in role for role in roles)
    path = tmp_path / "coded.safetensors"
    with torch.inference_mode():
        quantise(source, Recipe(dict.fromkeys(layers, Choice.parse(choice))), path, act_bits=16)
    coded = loaded(path)
    assert sum(kept.layers for kept in kept_as(coded)) == len(layers)
    prompts = (prompt(peopled()), prompt(peopled()))
    assert psnr(sample(coded, TINY, prompts=prompts), sample(model, TINY, prompts=prompts)) >= least


def windowed(model, length: int, overlap: int, monkeypatch) -> tuple:
    """The model in core's context windows, and what its network is then given."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    found, network = [], type(model.model.diffusion_model)
    forward = network._forward

    def seeing(self, *args, **conds):
        found.append({"x": args[0], **conds})
        return forward(self, *args, **conds)

    monkeypatch.setattr(network, "_forward", seeing)
    node = ContextWindowsManualNode.execute(
        model, context_length=length, context_overlap=overlap, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False)  # fmt: skip
    return node.args[0], found


def test_context_windows_cut_the_scene_with_the_video(model, monkeypatch):
    """7 latent frames, 16 points in view of 40: no size of the scene that has no time is cut by chance."""
    scene, latent = walking(25), torch.zeros(1, 16, 7, 8, 12)
    scene = replace(scene, reference=Reference(noise(1, 16, 1, 14, 14, seed=3), scene.body),
                    background=Background(noise(1, 16, 7, 8, 12, seed=4)))  # fmt: skip
    whole = conditions(scene, model.model.diffusion_model.config, (7, 8, 12), model.model.process_latent_in)
    patched, found = windowed(model, 5, 3, monkeypatch)
    sample(patched, TINY, steps=1, latent=latent, prompts=(prompt(scene), prompt(scene)))
    assert [given["frames"][0].tolist() for given in found] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]
    for given in found:
        frames = given["frames"][0]
        assert given["x"].shape[2] == len(frames)
        assert torch.equal(given["body_place"].view(torch.float32), whole["body_place"][:, frames])
        assert torch.equal(given["body_content"].view(torch.float32), whole["body_content"][:, frames])
        assert torch.equal(given["body_usable"].bool(), whole["body_usable"][:, frames])
        assert torch.equal(given["rays"], whole["rays"][:, :, frames])
        assert torch.equal(given["background"], whole["background"][:, :, frames])
        for name in ("body_person", "body_part", "body_identity", "reference"):
            assert torch.equal(given[name], whole[name].to(given[name])), name


def test_a_window_of_all_frames_is_no_window(model, monkeypatch):
    prompts = (prompt(peopled()), prompt(peopled()))
    plain = sample(model, TINY, prompts=prompts)
    patched, found = windowed(model, 3, 1, monkeypatch)
    assert torch.equal(sample(patched, TINY, prompts=prompts), plain)
    assert {given["x"].shape[2] for given in found} == {3}


def test_half_precision_keeps_places_exact(model, monkeypatch):
    """ComfyUI casts conditioning to the model's dtype; a place in bfloat16 would be off by up to 1 in 256."""
    import comfy.ops
    from interspatial.models.host.interspatial_model import InterspatialConfig, patcher_of

    network = model.model.diffusion_model
    half = patcher_of(dict(network.state_dict()), InterspatialConfig(network.config),
                      {"dtype": torch.float32, "custom_operations": comfy.ops.manual_cast}, False)  # fmt: skip
    half.model.manual_cast_dtype = torch.bfloat16
    _, found = windowed(half, 9, 1, monkeypatch)
    scene = peopled()
    out = sample(half, TINY, steps=1, prompts=(prompt(scene), prompt(scene)))
    place = body_tokens(scene.body, scene.camera, 4).place[None]
    assert torch.equal(found[0]["body_place"].view(torch.float32), place)
    assert found[0]["rays"].dtype == found[0]["x"].dtype == torch.bfloat16
    want = sample(model, TINY, steps=1, prompts=(prompt(scene), prompt(scene)))
    assert out.isfinite().all() and relative(out, want) <= 0.05


def test_the_wrong_size_is_said_before_sampling(model):
    with pytest.raises(ValueError, match=r"^Body and Camera Scene: the latent has 5 frames"):
        sample(model, TINY, latent=torch.zeros(1, 16, 5, 8, 12))


def test_wrong_files_are_refused(model, tmp_path):
    from interspatial.models.host.interspatial_model import why_not_ours

    path = tmp_path / "m.safetensors"
    assert why_not_ours(written(model, path)) is None
    tensors = load_file(path)
    save_file(tensors, tmp_path / "plain.safetensors")
    assert "is no interspatial model" in why_not_ours(str(tmp_path / "plain.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in why_not_ours(str(tmp_path / "cut.safetensors"))
    told = model.model.diffusion_model.config.told()
    for change, says in (({"interspatial": {**told, "joint": 1}}, r"settings \['joint'\] are not known"),
                         ({"latent": "ltx"}, "latents are of kind 'ltx'"),
                         ({"interspatial": {**told, "depth": 3}}, r"it lacks, the first is blocks\.2"),
                         ({"interspatial": {**told, "depth": 1}}, "in excess of its config"),
                         ({"interspatial": {**told, "feed": 2.0}}, "size mismatch")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            loaded(written(model, path, **change))
