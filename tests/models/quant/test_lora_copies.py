"""Quantised models with LoRAs: copied by ComfyUI, saved to a file, and with LoRAs that belong to one prompt."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from interspatial.tests.models.quant.tiny_quantised import (
    SIZES,
    codes,
    cosine,
    decoded,
    encoded,
    network_of,
    relative,
    unload,
    with_lora,
)
from interspatial.tests.models.tinies import BY_NAME, noise, sample

TINY = BY_NAME["wan"]
KEY = "diffusion_model.blocks.1.ffn.0.weight"
NEAR = 1e-3  # of the effect of a LoRA: two ways of adding in float32


def run(model) -> torch.Tensor:
    return sample(model, TINY, steps=2)


# -------------------------------------------------------------------------------------------- copies and files

def test_copies_that_core_loads_anew(coarse, weights):
    """For torch.compile and hooks ComfyUI takes weights of its own, for a second GPU a second model."""
    model = with_lora(coarse, weights[0])
    wanted = run(model)
    with torch.inference_mode():
        copies = [model.clone(force_deepcopy=True), model.deepclone_multigpu()]
    for other in copies:
        assert network_of(other) is not network_of(model)
        assert type(other) is type(model) and other.beside().keys() == model.beside().keys()
        assert torch.equal(run(other), wanted)


class Nothing:
    """What a patcher that was never made becomes, so that nothing is unloaded when it goes."""


def test_the_dynamic_patcher_of_gpus_gets_the_same(comfy):
    from comfy.model_patcher import ModelPatcher, ModelPatcherDynamic
    from interspatial.models.host.quant_patcher import LorasBeside, quantised_patcher

    for base in (ModelPatcher, ModelPatcherDynamic):
        patcher = object.__new__(base)
        assert quantised_patcher(patcher) is patcher
        assert isinstance(patcher, (LorasBeside, base)) and type(patcher).__mro__[1:3] == (LorasBeside, base)
        assert type(quantised_patcher(patcher)) is type(patcher), "not twice"
        patcher.__class__ = Nothing


def saved(model, path, offloaded=False):
    """MODEL of the file that core's Save Model node writes of a MODEL."""
    import comfy.model_management
    import comfy.utils
    from interspatial.models.host.quant_loading import load_quantised_model

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        if offloaded:
            model.partially_unload(torch.device("cpu"), 1e9)
        tensors = model.state_dict_for_saving()
        comfy.utils.save_torch_file(tensors, str(path), {"config": json.dumps({"transformer": SIZES})})
        return load_quantised_model(str(path))


@pytest.mark.parametrize("offloaded", [False, True])
def test_saved_without_a_lora_it_is_the_same(coarse, tmp_path, offloaded):
    before = codes(coarse)
    now = codes(saved(coarse, tmp_path / "again.safetensors", offloaded))
    assert before.keys() == now.keys() and all(torch.equal(now[name], x) for name, x in before.items())
    unload()


@pytest.mark.parametrize("offloaded", [False, True])
def test_a_lora_in_finer_layers_is_saved_as_it_computes(fine, weights, tmp_path, offloaded):
    model = with_lora(fine, weights[0])
    wanted = run(model)
    assert torch.equal(run(saved(model, tmp_path / "again.safetensors", offloaded)), wanted)
    unload()


def test_saving_merges_it_and_says_what_that_costs(coarse, weights, tmp_path, caplog):
    model = with_lora(coarse, weights[0])
    plain, wanted = run(coarse), run(model)
    with caplog.at_level(logging.WARNING):
        again = saved(model, tmp_path / "again.safetensors")
    assert any("Saving rounds a LoRA into 8 coarsely quantised layers" in line for line in caplog.messages)
    assert cosine(run(again) - plain, wanted - plain) > 0.5
    assert torch.equal(run(model), wanted) and torch.equal(run(coarse), plain)


# -------------------------------------------------------------------------------------------- hooks

def hooked(dense, weights, strength=1.0):
    """A positive prompt with a LoRA of its own, and a negative one without."""
    import comfy.hooks

    hook = comfy.hooks.create_hook_lora(dict(weights), strength, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(TINY.prompt(1), hook), TINY.prompt(2)


@pytest.mark.parametrize("width", ["coarse", "fine"])
def test_a_lora_of_one_prompt_alone(dense, weights, width, request):
    """ComfyUI's hooks; it cannot write them into quantised weights, so they are beside layers of every width."""
    model, prompts = request.getfixturevalue(width), hooked(dense, weights[0], 0.7)

    def run(model, prompts=None):
        return sample(model, TINY, steps=2, cfg=2.0, prompts=prompts)

    plain, found = run(model), run(model, prompts)
    assert not any(getattr(module, "hooked", ()) for module in network_of(model).modules())
    assert torch.equal(run(model), plain)
    unload()
    with decoded(dense, encoded(network_of(dense), {"coarse": "rtn 4", "fine": "rtn 8"}[width])) as other:
        assert relative(found - plain, run(other, prompts) - run(other)) < NEAR


def test_hooks_that_are_no_sums_are_refused(coarse, weights):
    name = KEY.removesuffix(".weight")
    shape = network_of(coarse).blocks[1].ffn[0].weight.shape
    with pytest.raises(ValueError, match=f"A hook changes {KEY} in a way that cannot be added.*Accepted: low-rank"):
        sample(coarse, TINY, steps=2, prompts=hooked(coarse, {f"{name}.diff": noise(*shape)}))
    unload()


def test_merging_models_finds_their_weights(coarse, fine):
    """Core's merge nodes ask for the weight behind every name in the state dict."""
    patches = coarse.get_key_patches("diffusion_model.")
    assert KEY in patches and not any(key.endswith(("_scale", "_table", "comfy_quant")) for key in patches)
