"""LoRAs of ComfyUI's loaders on quantised models: beside coarse layers, rounded into others, gone when unloaded."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from interspatial.models.quant.format import FORMATS
from interspatial.tests.models.quant.tiny_quantised import (
    LAYERS,
    SIZES,
    cosine,
    decoded,
    encoded,
    loaded,
    lora,
    network_of,
    relative,
    unload,
    with_lora,
)
from interspatial.tests.models.tinies import BY_NAME, noise, sample

TINY = BY_NAME["wan"]
NEAR = 1e-3  # of the effect of a LoRA: two ways of adding in float32


@pytest.fixture(scope="module")
def dense(comfy):
    return TINY.model()


@pytest.fixture(scope="module")
def coarse(dense, tmp_path_factory):
    """At 4 bits, activations as they are."""
    return loaded(tmp_path_factory.mktemp("coarse") / "model.safetensors", dense, "rtn 4")


@pytest.fixture(scope="module")
def fine(dense, tmp_path_factory):
    """At 8 bits, in a format that is not ComfyUI's own."""
    return loaded(tmp_path_factory.mktemp("fine") / "model.safetensors", dense, "rtn 8")


@pytest.fixture(scope="module")
def weights(dense):
    return [lora(network_of(dense), seed) for seed in (1, 2)]


def run(model) -> torch.Tensor:
    return sample(model, TINY, steps=2)


def codes(model) -> dict[str, torch.Tensor]:
    """Every tensor of the layers' weights."""
    tensors = network_of(model).state_dict()
    return {name: x.clone() for name, x in tensors.items() if ".weight" in name}


def effect_as_on_decoded(dense, coarse, change) -> None:
    """A change of patches does to the quantised model what it does to a dense one with the decoded weights."""
    found = run(change(coarse)) - run(coarse)
    with decoded(dense, encoded(network_of(dense), "rtn 4")) as model:
        wanted = run(change(model)) - run(model)
    assert wanted.norm() > 1e-2
    assert relative(found, wanted) < NEAR


# -------------------------------------------------------------------------------------------- beside coarse layers

@pytest.mark.parametrize("strength", [0.7, -0.5])
def test_its_effect_is_exact(dense, coarse, weights, strength):
    effect_as_on_decoded(dense, coarse, lambda model: with_lora(model, weights[0], strength))


def test_two_of_them_and_one_twice(dense, coarse, weights):
    def change(model):
        return with_lora(with_lora(with_lora(model, weights[0], 0.7), weights[1], 0.4), weights[0], -0.3)

    effect_as_on_decoded(dense, coarse, change)


def test_weights_stay_as_they_are(coarse, weights):
    before, plain = codes(coarse), run(coarse)
    changed = run(with_lora(coarse, weights[0]))
    now = codes(coarse)
    assert all(torch.equal(now[name], x) for name, x in before.items())
    assert not torch.equal(changed, plain)
    assert torch.equal(run(coarse), plain), "the next MODEL on the same weights has no LoRA"
    assert torch.equal(run(with_lora(coarse, weights[0])), changed)


def test_alternating_models_do_not_meet(coarse, weights):
    models = [with_lora(coarse, tensors) for tensors in weights]
    first = [run(model) for model in models]
    assert all(torch.equal(run(model), found) for model, found in zip(models, first, strict=True))
    unload()
    assert not any(getattr(module, "beside", ()) for module in network_of(coarse).modules())
    assert all(torch.equal(run(model), found) for model, found in zip(models, first, strict=True))


def test_a_failure_in_the_middle_leaves_no_trace(coarse, weights):
    plain = run(coarse)
    model = with_lora(coarse, weights[0])
    network = network_of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network.blocks[1].ffn[2], "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model)
    assert torch.equal(run(coarse), plain)


def test_the_patches_given_are_not_written_to(coarse, weights):
    model = with_lora(coarse, weights[0])
    adapters = [patch[1] for patches in model.patches.values() for patch in patches]
    before = [(dict(vars(adapter)), [id(x) for x in adapter.weights]) for adapter in adapters]
    run(model)
    assert [(vars(adapter), [id(x) for x in adapter.weights]) for adapter in adapters] == before


def test_its_memory_is_counted(coarse, weights):
    run(coarse)
    plain = coarse.loaded_size()
    model = with_lora(coarse, weights[0])
    run(model)
    assert model.loaded_size() - plain == sum(x.nbytes for x in weights[0].values() if x.ndim == 2)


def test_half_unloaded_it_is_still_there(coarse, weights):
    model = with_lora(coarse, weights[0])
    run(model)
    layer, x = network_of(model).blocks[0].self_attn.q, noise(5, 128)
    with torch.inference_mode():
        wanted = layer(x)
        model.partially_unload(torch.device("cpu"), 1e9)
        assert layer.comfy_cast_weights and torch.equal(layer(x), wanted)
        for part in layer.beside:
            part.leave_device()   # as ModelPatcherDynamic asks for when another model needs the room
        assert torch.equal(layer(x), wanted)
    unload()


# -------------------------------------------------------------------------------------------- kinds of patches

def adapters(shape: tuple[int, int]) -> dict:
    """One of each kind for a layer, with an alpha."""
    from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter

    n, k = shape
    small = [0.1 * noise(*size, seed=seed) for seed, size in enumerate(
        ((n, 3), (3, k), (n, 3), (3, k), (4, 4), (n // 4, 2), (2, k // 4)))]  # fmt: skip
    up, down, up2, down2, w1, w2a, w2b = small
    return {
        "lora": LoRAAdapter(set(), (up, down, 6.0, None, None, None)),
        "lora of a 1x1 convolution": LoRAAdapter(set(), (up[..., None, None], down[..., None, None], None, None, None,
                                                         None)),
        "loha": LoHaAdapter(set(), (up, down, 6.0, up2, down2, None, None, None)),
        "lokr": LoKrAdapter(set(), (w1, None, 6.0, None, None, w2a, w2b, None, None)),
        "dora": LoRAAdapter(set(), (up, down, 6.0, None, 1 + noise(n, 1).abs(), None)),
        "diff": ("diff", (0.1 * noise(n, k),)),
    }


KEY = "diffusion_model.blocks.1.ffn.0.weight"
BESIDE = {"lora", "lora of a 1x1 convolution", "loha", "lokr"}


@pytest.mark.parametrize("kind", ["lora", "lora of a 1x1 convolution", "loha", "lokr", "dora", "diff"])
def test_kinds_of_adapters(dense, coarse, kind):
    patch = adapters((128, 128))[kind]

    def change(model):
        model = model.clone()
        assert model.add_patches({KEY: patch}, 0.8) == [KEY]
        return model

    assert bool(change(coarse).beside()) == (kind in BESIDE)
    if kind in BESIDE:
        effect_as_on_decoded(dense, coarse, change)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_of_a_layer(dense, coarse, axis):
    """As LoRAs for q, k and v apart have them where the model has one layer for all three."""
    patch = adapters((64, 128) if axis == 0 else (128, 64))["lora"]

    def change(model):
        model = model.clone()
        model.add_patches({(KEY, (axis, 32, 64)): patch}, 0.8)
        return model

    assert change(coarse).beside()
    effect_as_on_decoded(dense, coarse, change)


def test_what_comes_before_other_patches_goes_into_the_weight(coarse):
    """Patches apply in order: a LoRA that a later patch scales or replaces must not escape it."""
    found = adapters((128, 128))
    model = coarse.clone()
    model.add_patches({KEY: found["lora"]})
    model.add_patches({KEY: found["diff"]})
    model.add_patches({KEY: found["loha"]}, 0.5)
    assert [patch[1] for patch in model.beside()[KEY.removesuffix(".weight")]] == [found["loha"]]
    model.add_patches({KEY: found["lora"]}, 1.0, 0.5)
    assert model.beside() == {}


def test_sizes_that_do_not_fit_are_left_to_core(coarse):
    model = coarse.clone()
    model.add_patches({KEY: adapters((128, 96))["lora"]})
    assert model.beside() == {}


# -------------------------------------------------------------------------------------------- finer layers

def test_finer_layers_round_it_in_as_core_does(dense, fine, weights):
    from interspatial.models.host.quant_patcher import lora_words

    assert FORMATS["rtn"].side < 8
    model = with_lora(fine, weights[0])
    assert lora_words(model) == f"LoRA rounded into {2 * len(LAYERS)}" and model.beside() == {}
    found, wanted = run(model) - run(fine), run(with_lora(dense, weights[0])) - run(dense)
    assert cosine(found, wanted) > 0.99


def test_loading_again_is_idempotent(fine, weights):
    """Rounding starts from the file's codes every time, so nothing drifts."""
    model = with_lora(fine, weights[0])
    plain, seen = codes(fine), []
    for _ in range(3):
        changed = run(model)
        seen.append((changed, codes(model)))
        unload()
        now = codes(fine)
        assert all(torch.equal(now[name], x) for name, x in plain.items())
    assert not all(torch.equal(seen[0][1][name], x) for name, x in plain.items())
    for changed, now in seen[1:]:
        assert torch.equal(changed, seen[0][0])
        assert all(torch.equal(now[name], x) for name, x in seen[0][1].items())


def test_words_of_a_mixture(coarse, weights):
    from interspatial.models.host.quant_patcher import lora_words

    assert lora_words(coarse) is None
    model = with_lora(coarse, weights[0])
    assert lora_words(model) == f"LoRA beside {2 * len(LAYERS)} layers"
    model.add_patches({KEY: adapters((128, 128))["diff"]})
    assert lora_words(model) == f"LoRA beside {2 * len(LAYERS) - 1} layers, rounded into 1"


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
