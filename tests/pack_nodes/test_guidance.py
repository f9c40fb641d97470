"""W2SD Reflection as a node."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.guidance import W2SDReflection

    return W2SDReflection


@pytest.fixture
def run(comfy):
    from interspatial.tests.models.guidance.reflected import TINY, sample

    model = TINY.model()
    return lambda sampler: sample(model, sampler)


def euler():
    import comfy.samplers

    return comfy.samplers.sampler_object("euler")


CFG = {"roles": "cfg", "strong_cfg": 0.0, "weak_cfg": 1.0}


def test_wraps_a_sampler(node, run):
    found = run(node.execute(euler(), CFG).args[0])
    assert not torch.equal(found, run("euler"))


def test_an_empty_window_is_the_sampler(node, run):
    sampler = node.execute(euler(), CFG, start_percent=0.3, end_percent=0.3).args[0]
    assert torch.equal(run(sampler), run("euler"))


def test_widgets_reach_the_reflection(node):
    from interspatial.models.guidance import CfgRoles, Reflection
    from interspatial.models.schedule import StepWindow

    roles = {"roles": "cfg", "strong_cfg": 6.0, "weak_cfg": 2.0}
    sampler = node.execute(euler(), roles, 0.1, 0.6, 0.5, 2, "new").args[0]
    assert sampler.roles == CfgRoles(6.0, 2.0)
    assert sampler.reflection == Reflection(StepWindow(0.1, 0.6), 0.5, 2, "new")


def test_prompts_and_models_may_lack_the_strong_one(node, run):
    from interspatial.models.guidance import ModelRoles, PromptRoles
    from interspatial.tests.models.guidance.reflected import TINY

    weak = TINY.prompt(7)
    sampler = node.execute(euler(), {"roles": "prompt", "weak_prompt": weak}).args[0]
    assert sampler.roles == PromptRoles(weak) and not torch.equal(run(sampler), run("euler"))
    model = object()
    assert node.execute(euler(), {"roles": "model", "weak_model": model}).args[0].roles == ModelRoles(model)


def test_the_lora_comes_from_comfyuis_folder(node, comfy):
    from pathlib import Path

    from interspatial.models import host

    host.register_folders(Path(__file__).resolve().parents[2] / "checkpoints")
    roles = {"roles": "lora", "lora_name": "tiny_puppet_t2v_guided.safetensors", "strong_strength": 0.5,
             "weak_strength": -0.5}  # fmt: skip
    chosen = node.execute(euler(), roles).args[0].roles
    assert (chosen.strong, chosen.weak) == (0.5, -0.5)
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in chosen.weights


def test_a_window_that_ends_before_it_starts_is_named(node):
    assert "its start before its end" in node.validate_inputs(start_percent=0.6, end_percent=0.4)
    assert node.validate_inputs(start_percent=0.4, end_percent=0.4) is True


def test_what_cannot_be_wrapped_is_named(node):
    import comfy.samplers

    with pytest.raises(ValueError, match="W2SD Reflection: uni_pc hands the model a scaled copy"):
        node.execute(comfy.samplers.sampler_object("uni_pc"), CFG)
    with pytest.raises(ValueError, match="of the kind object"):
        node.execute(object(), CFG)
