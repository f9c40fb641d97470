"""Quantised models under everything else: families, context windows, sparse attention, caches, compilation, roles."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from interspatial.models.quant.layers import quantised_layers, role_of_layer
from interspatial.tests.models.quant.tiny_quantised import (
    SIZES,
    decoded,
    encoded,
    loaded,
    lora,
    network_of,
    relative,
    unload,
    with_lora,
)
from interspatial.tests.models.tinies import BY_NAME, sample
from interspatial.tests.models.tiny_dits import wan

WAN = BY_NAME["wan"]
CROSS, OWN = "cross_attn.k cross_attn.o cross_attn.q cross_attn.v", "self_attn.k self_attn.o self_attn.q self_attn.v"
HUNYUAN = ("double_blocks: img_attn.proj img_attn.qkv img_mlp.0 img_mlp.2 txt_attn.proj txt_attn.qkv txt_mlp.0 "
           "txt_mlp.2; single_blocks: linear1 linear2")  # fmt: skip
COGVIDEO = "blocks: attn_out ff_out ff_proj k q v"
WAN_TEXT = f"blocks: {CROSS} ffn.0 ffn.2 {OWN}"
WAN_IMAGE = WAN_TEXT.replace("cross_attn.k", "cross_attn.k cross_attn.k_img").replace("ffn.0", "cross_attn.v_img ffn.0")
KANDINSKY = ("feed_forward.in_layer feed_forward.out_layer self_attention.out_layer self_attention.to_key "
             "self_attention.to_query self_attention.to_value")  # fmt: skip
ROLES = {
    "wan": WAN_TEXT,
    "wan_i2v": WAN_IMAGE,
    "wan_vace": f"{WAN_TEXT}; vace_blocks: after_proj before_proj {CROSS} ffn.0 ffn.2 {OWN}",
    "wan_camera": WAN_TEXT,
    "wan_s2v": WAN_TEXT,
    "wan_humo": WAN_TEXT,
    "wan_animate": WAN_IMAGE,
    "wan_scail": WAN_IMAGE,
    "wan_dancer": WAN_IMAGE,
    "hunyuan_video": HUNYUAN,
    "hunyuan_video_15": HUNYUAN,
    "cogvideox": COGVIDEO,
    "cogvideox_15_odd": COGVIDEO,
    "ltxv": "transformer_blocks: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q "
            "attn2.to_v ff.net.0.proj ff.net.2",
    "ltxav": "transformer_blocks: attn1.to_k attn1.to_out.0 attn1.to_q attn1.to_v attn2.to_k attn2.to_out.0 attn2.to_q "
             "attn2.to_v ff.net.0.proj ff.net.2",
    "mochi": "blocks: attn.proj_x attn.qkv_x attn.qkv_y mlp_x.w1 mlp_x.w2",
    "cosmos": "blocks: blocks.0.block.attn.to_k.0 blocks.0.block.attn.to_out.0 blocks.0.block.attn.to_q.0 "
              "blocks.0.block.attn.to_v.0 blocks.1.block.attn.to_k.0 blocks.1.block.attn.to_out.0 "
              "blocks.1.block.attn.to_q.0 blocks.1.block.attn.to_v.0 blocks.2.block.layer1 blocks.2.block.layer2",
    "cosmos_predict2": "blocks: cross_attn.k_proj cross_attn.output_proj cross_attn.q_proj cross_attn.v_proj "
                       "mlp.layer1 mlp.layer2 self_attn.k_proj self_attn.output_proj self_attn.q_proj self_attn.v_proj",
    "kandinsky5": f"text_transformer_blocks: {KANDINSKY}; visual_transformer_blocks: cross_attention.out_layer "
                  f"cross_attention.to_key cross_attention.to_query cross_attention.to_value {KANDINSKY}",
    "minimax_h3": "blocks: attn.out_proj attn.qkv_proj mlp.fc1 mlp.fc2",
    "flux": HUNYUAN,
    "qwen_image": "transformer_blocks: attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out attn.to_k "
                  "attn.to_out.0 attn.to_q attn.to_v img_mlp.net.0.proj img_mlp.net.2 txt_mlp.net.0.proj txt_mlp.net.2",
    "lumina2": "; ".join(f"{stack}: attention.out attention.qkv feed_forward.w1 feed_forward.w2 feed_forward.w3"
                         for stack in ("context_refiner", "layers", "noise_refiner")),
}  # fmt: skip


# -------------------------------------------------------------------------------------------- every family

@pytest.mark.parametrize("name", ROLES)
def test_which_layers_of_a_family_are_quantised(comfy, name):
    """Read with the sizes of real models, for what is too small here is not there. Embedders, modulation, heads, token
    refiners and all of the sound stay as they are.
    """
    modules = network_of(BY_NAME[name].model()).named_modules()
    matrices = [key for key, module in modules if getattr(getattr(module, "weight", None), "ndim", 0) == 2]
    found: dict[str, set] = {}
    for layer in quantised_layers((f"{key}.weight", (4096, 4096)) for key in matrices):
        found.setdefault(re.match(r"\D+?(?=\.)", layer)[0], set()).add(role_of_layer(layer))
    assert "; ".join(f"{stack}: {' '.join(sorted(roles))}" for stack, roles in sorted(found.items())) == ROLES[name]


@pytest.mark.parametrize("name", ROLES)
def test_every_family_computes_what_its_weights_say(comfy, name):
    """With activations as they are, a quantised model is a dense one with the decoded weights."""
    from interspatial.models.host.quant_trial import coded_layers

    tiny = BY_NAME[name]
    model = tiny.model()
    coded = encoded(network_of(model), "rtn 4" if name == "mochi" else "vidit_q 4")   # Mochi is not tiny, and rtn quick
    assert coded
    plain = sample(model, tiny, steps=1)
    with coded_layers(network_of(model), coded, 16):
        found = sample(model, tiny, steps=1)
    with decoded(model, coded):
        wanted = sample(model, tiny, steps=1)
    assert relative(found, wanted) < min(1e-4, 0.1 * relative(plain, wanted)), "and four bits show"
    assert torch.equal(sample(model, tiny, steps=1), plain)


FILES = {"wan": SIZES, "wan_i2v": SIZES, "wan_vace": SIZES, "hunyuan_video": None, "cogvideox": None,
         "ltxv": {"attention_head_dim": 64, "num_attention_heads": 2, "caption_channels": 32}, "minimax_h3": None,
         "flux": None}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_families_whose_files_core_tells_apart(comfy, tmp_path, name):
    tiny = BY_NAME[name]
    quantised = loaded(tmp_path / "model.safetensors", tiny.model(), "vidit_q 4", 16, FILES[name])
    found = sample(quantised, tiny, steps=1)
    with decoded(tiny.model(), encoded(network_of(tiny.model()))) as model:
        assert relative(found, sample(model, tiny, steps=1)) < 1e-4


# -------------------------------------------------------------------------------------------- on top of each other

@pytest.fixture(scope="module")
def quantised(comfy, tmp_path_factory):
    """The tiny Wan at 4 bits, activations as they are: it must give what the dense one with its weights gives."""
    return loaded(tmp_path_factory.mktemp("wan") / "model.safetensors", WAN.model(), "vidit_q 4")


def same_as_decoded(quantised, patch, tiny=WAN, steps=6, within=1e-4, **run) -> None:
    """Patches on the quantised model and on a dense one with its weights give the same clip."""
    found = sample(patch(quantised), tiny, steps=steps, **run)
    with decoded(WAN.model(), encoded(network_of(WAN.model()))) as model:
        wanted, plain = sample(patch(model), tiny, steps=steps, **run), sample(model, tiny, steps=steps, **run)
    assert relative(wanted, plain) > 10 * within, "the patches do something"
    assert relative(found, wanted) < within


def windows(model):
    """Core's context windows of 4 latent frames."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    return ContextWindowsManualNode.execute(model, 4, 1, "standard_static", 1, False, "pyramid", 2, False).args[0]


def sparse(model):
    from interspatial.nodes.speed import SparseVideoAttention

    return SparseVideoAttention.execute(
        model, {"method": "radial", "density": 0.5}, min_tokens=0, dense_layers="", first_dense_steps=0, block_side=2
    ).args[0]


def cache(model):
    from interspatial.nodes.cache import StepCacheNode

    return StepCacheNode.execute(model, {"method": "taylorseer"}, {"schedule": "fixed", "interval": 2},
                                 first_steps=2, last_steps=1).args[0]  # fmt: skip


def lora_on(model):
    return with_lora(model, lora(network_of(model)))


LONG = torch.zeros(1, 16, 9, 8, 12)   # three windows


@pytest.mark.parametrize("patches", [(windows,), (sparse,), (cache,), (lora_on, windows, sparse, cache),
                                     (cache, lora_on, sparse, windows)],
                         ids=lambda patches: " ".join(patch.__name__ for patch in patches))  # fmt: skip
def test_patches_on_a_quantised_model(quantised, patches):
    def patch(model):
        for each in patches:
            model = each(model)
        return model

    same_as_decoded(quantised, patch, latent=LONG if windows in patches else None, cfg=2.0)


def test_roles_with_a_lora_of_reflection(quantised):
    """W2SD's LoRA, switched between evaluations, is that of core's loader beside the weights; also on top of one."""
    from interspatial.models.host.lora_switch import LoraSwitch

    weights, other = lora(network_of(quantised)), lora(network_of(quantised), seed=5)
    plain = sample(quantised, WAN)
    for model in (quantised, with_lora(quantised, other)):
        with LoraSwitch(model, weights, "ours").at(0.6):
            found = sample(model, WAN)
        wanted = sample(with_lora(model, weights, 0.6), WAN)
        assert relative(found, wanted) < 1e-5 < 1e-3 < relative(wanted, plain)
    assert torch.equal(sample(quantised, WAN), plain)


def test_bypass_loras_of_core_add_up_with_ordinary_ones(quantised):
    import comfy.sd

    weights, other = lora(network_of(quantised)), lora(network_of(quantised), seed=5)
    wanted = sample(with_lora(with_lora(quantised, weights, 0.6), other, 0.3), WAN)
    with torch.inference_mode():
        model = comfy.sd.load_bypass_lora_for_models(with_lora(quantised, weights, 0.6), None, other, 0.3, 0.0)[0]
    assert relative(sample(model, WAN), wanted) < 1e-5
    unload()


def test_dynamic_routers_refuse(quantised, tmp_path):
    from interspatial.models.host.layers import why_not_sliced

    reason = why_not_sliced(network_of(quantised).blocks[0].ffn[0])
    assert reason == "the model's weights are quantised, and a part of such a weight is not one of its own"


def test_measure_run(quantised):
    from interspatial.nodes.measure import MeasureRun

    model, measurement = MeasureRun.execute(lora_on(quantised)).args
    assert torch.equal(sample(model, WAN, steps=3), sample(lora_on(quantised), WAN, steps=3))
    assert measurement is not None


def test_two_formats_in_one_graph(quantised, tmp_path):
    """Two models that take turns, as the two experts of Wan 2.2 do."""
    others = [loaded(tmp_path / f"{choice}.safetensors", WAN.model(), choice, 8) for choice in ("rtn 3", "vidit_q 8")]
    models = [quantised, *others]
    first = [sample(model, WAN) for model in models]
    assert all(relative(a, b) > 1e-4 for a, b in itertools.pairwise(first))
    for model, found in [*zip(models, first, strict=True)][::-1]:
        assert torch.equal(sample(model, WAN), found)


def test_nothing_is_compiled_anew(comfy, tmp_path):
    """With core's Torch Compile node and a LoRA beside the weights: no graph comes after the first run."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    def backend(graph, inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    graphs: list[int] = []
    torch._dynamo.reset()
    try:
        plain = lora_on(loaded(tmp_path / "model.safetensors", wan(num_layers=1), "vidit_q 4", 8))
        with torch.inference_mode():
            model = plain.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model, backend, options={"guard_filter_fn": skip_torch_compile_dict})
        found = sample(model, WAN, steps=1)
        first = len(graphs)
        assert first > 0
        again = sample(model, WAN, steps=3)
        assert len(graphs) == first
    finally:
        torch._dynamo.reset()
    assert relative(found, sample(plain, WAN, steps=1)) < 1e-4
    assert relative(again, sample(plain, WAN, steps=3)) < 1e-4
