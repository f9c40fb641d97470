"""A LoRA beside the weights: as core's loader patches it, and gone without a trace."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.guidance import CfgRoles, LoraRoles
from interspatial.tests.models.guidance.reflected import TINY, Watch, sample, wrapped
from interspatial.tests.models.tinies import noise

LAYERS = ("self_attn.q", "self_attn.o", "cross_attn.v", "ffn.0")


@pytest.fixture(scope="module")
def weights(comfy) -> dict[str, torch.Tensor]:
    """A LoRA of rank 3 for some layers of the tiny model, with an alpha of its own."""
    blocks, made = TINY.model().model.diffusion_model.blocks, {}
    for i, block in enumerate(blocks):
        for j, name in enumerate(LAYERS):
            wide, high = block.get_submodule(name).weight.shape
            key = f"diffusion_model.blocks.{i}.{name}"
            made[f"{key}.lora_A.weight"] = 0.2 * noise(3, high, seed=10 * i + j)
            made[f"{key}.lora_B.weight"] = 0.2 * noise(wide, 3, seed=100 + 10 * i + j)
            made[f"{key}.alpha"] = torch.tensor(6.0)
    return made


def modules(model) -> list:
    return list(model.model.diffusion_model.modules())


@pytest.mark.parametrize("strength", [0.7, -0.5])
def test_it_is_what_core_patches(comfy, weights, strength):
    import comfy.sd
    from interspatial.models.host.lora_switch import LoraSwitch

    model = TINY.model()
    plain = sample(model, "euler")
    with LoraSwitch(model, weights, "ours").at(strength):
        found = sample(model, "euler")
    patched = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)[0]
    wanted = sample(patched, "euler")
    assert (found - wanted).norm() < 1e-4 * (wanted - plain).norm()
    assert torch.equal(sample(model, "euler"), plain), "the weights were never touched"
    assert not any("forward" in vars(module) for module in modules(model))


def test_the_parts_have_it_and_the_run_has_not(comfy, weights):
    """Strength 0 on both sides is no LoRA; when an evaluation fails, the layers are as they were."""
    model = TINY.model()
    equal = sample(model, wrapped(CfgRoles(3.0, 3.0)))
    none = sample(model, wrapped(LoraRoles("ours", weights, 0.0, 0.0)))
    torch.testing.assert_close(none, equal, rtol=0, atol=1e-5)
    assert (sample(model, wrapped(LoraRoles("ours", weights, 0.5, -0.5))) - equal).abs().max() > 1e-3


def test_a_failure_leaves_no_trace(comfy, weights):
    from interspatial.models import host
    from interspatial.models.report import Card

    class Fails(Watch):
        def why_not(self, step):
            if step.role == "weak":
                raise RuntimeError("on purpose")
            return super().why_not(step)

    model = host.attach_step(TINY.model(), Card("fails", "measure"), Fails())
    with pytest.raises(RuntimeError, match="on purpose"):
        sample(model, wrapped(LoraRoles("ours", weights)))
    assert not any("forward" in vars(module) for module in modules(model))


def test_files_that_do_not_fit_are_named(comfy, weights):
    from interspatial.models.host.lora_switch import LoraSwitch

    with pytest.raises(ValueError, match="none of the 1 tensors of other"):
        LoraSwitch(TINY.model(), {"somewhere.lora_A.weight": torch.zeros(2, 2)}, "other.safetensors")
    size = TINY.model().model.diffusion_model.blocks[1].self_attn.k.weight.shape
    whole = {"diffusion_model.blocks.1.self_attn.k.diff": torch.zeros(size)}
    with pytest.raises(ValueError, match="changes 1 of 9 weights"):
        LoraSwitch(TINY.model(), {**weights, **whole}, "ours")
