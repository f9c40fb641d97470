"""LoRAs of ComfyUI's loaders on quantised models: beside coarse layers, rounded into others, gone when unloaded."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.quant.format import FORMATS
from interspatial.tests.models.quant.tiny_quantised import (
    LAYERS,
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
NEAR = 1e-3  # of the effect of a LoRA: two ways of adding in float32


def run(model) -> torch.Tensor:
    return sample(model, TINY, steps=2)


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
    assert FORMATS["rtn"].side < 8
    model = with_lora(fine, weights[0])
    assert model.beside() == {} and len(model.patches) == 2 * len(LAYERS)
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


def test_what_is_no_product_goes_into_the_weight_with_all_before_it(coarse, weights):
    assert coarse.beside() == {}
    model = with_lora(coarse, weights[0])
    assert len(model.beside()) == 2 * len(LAYERS)
    model.add_patches({KEY: adapters((128, 128))["diff"]})
    assert len(model.beside()) == 2 * len(LAYERS) - 1
