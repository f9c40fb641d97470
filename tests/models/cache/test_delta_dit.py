"""Delta-DiT: spans of blocks that are left out, on tiny models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.cache.delta_dit import DeltaDiT
from interspatial.models.cache.first_block import FirstBlock
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.spans import in_stacks
from interspatial.tests.models.cache.blocks import block_runs, cached, depth, error, report_of, still
from interspatial.tests.models.tinies import BY_NAME, sample
from interspatial.tests.models.tiny_dits import hunyuan, wan

# odd latents, two streams, two stacks, text first, blocks by name, 5-D streams, one block, a packed sequence, sound
FAMILIES = ("wan_odd", "wan_5b", "cogvideox_15_odd", "cosmos", "cosmos_predict2", "hunyuan_video", "hunyuan_video_15",
            "kandinsky5", "ltxav", "ltxv", "minimax_h3", "mochi", "flux", "qwen_image", "lumina2")  # fmt: skip
WAN = BY_NAME["wan_odd"]


@pytest.fixture
def deep(comfy):
    """Five blocks: a fraction of 0.6 leaves out three."""
    return wan(num_layers=5)


@pytest.mark.parametrize(("start", "stop", "pieces"), [
    (24, 60, [range(24, 60)]), (0, 36, [range(20), range(20, 36)]), (0, 20, [range(20)]), (20, 21, [range(20, 21)]),
    (5, 5, [])])
def test_a_span_is_cut_between_stacks(start, stop, pieces):
    assert in_stacks([20, 40], start, stop) == pieces


def test_rear_blocks_are_left_out_early_and_front_blocks_late(deep):
    """Eight simple steps lie at 0, 12.5, ... percent, so the switch lies between steps 3 and 4."""
    model = cached(deep, DeltaDiT(switch=0.45), Fixed(2), first=2, last=1)
    with block_runs(deep) as forwards:
        sample(model, WAN, steps=8)
    full = [0, 1, 2, 3, 4]
    assert forwards == [full, full, [0, 1], full, full, [3, 4], full, full]
    assert "model calls 6 of 8" in report_of(model)
    assert "blocks 34 of 40" in report_of(model)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mochi"])   # its tiny one takes seconds
def test_interval_one_is_bit_equal(comfy, name):
    tiny = BY_NAME[name]
    model = cached(tiny.model(), DeltaDiT(), Fixed(1))
    assert torch.equal(sample(model, tiny, steps=2, cfg=3.0), sample(tiny.model(), tiny, steps=2, cfg=3.0))
    assert "2/2 steps" in report_of(model)


@pytest.mark.parametrize("switch", [0.0, 1.0], ids=["front", "rear"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_stands_still_is_forecast_as_it_is(comfy, name, switch):
    """The same latent at the same noise in every step: the kept difference is the true one."""
    tiny = BY_NAME[name]
    plain = still(tiny.model(), tiny, steps=1)[0]
    model, blocks = cached(tiny.model(), DeltaDiT(switch=switch), Fixed(9)), depth(tiny.model())
    with block_runs(model) as forwards:
        outputs = still(model, tiny, steps=3)
    assert all(error(output, plain) < 2e-5 for output in outputs)
    left = list(range(round(0.6 * blocks)))
    left = left if switch == 0.0 else [blocks - 1 - i for i in left]
    calls = len(forwards) // 3
    assert len(forwards[0]) == blocks
    assert forwards[calls:] == [[i for i in range(blocks) if i not in left]] * (2 * calls)


@pytest.mark.parametrize("switch", [0.0, 1.0], ids=["front", "rear"])
def test_hints_between_the_blocks_are_not_added_twice(comfy, switch):
    """VACE adds its hints after blocks 0 and 2, which are the first ones of the two spans."""
    tiny, model = BY_NAME["wan_vace"], wan("VaceWanModel", num_layers=4, vace_layers=2, vace_in_dim=96)
    with block_runs(model) as forwards:
        outputs = still(cached(model, DeltaDiT(switch=switch), Fixed(9)), tiny, steps=3)
    left = [2, 3] if switch == 0.0 else [0, 1]
    assert forwards == [[0, 1, 2, 3], left, left]
    assert all(error(output, outputs[0]) < 2e-5 for output in outputs)


def test_blocks_that_add_a_constant_are_forecast_exactly(comfy):
    """Whatever noise and latent are: zero output weights, and a gate that does not look at the time."""
    model = wan.__wrapped__(num_layers=5)
    for block in model.model.diffusion_model.blocks:
        for layer in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
            layer.weight.data.zero_()
    model.model.diffusion_model.time_projection[1].weight.data.zero_()
    plain = sample(model, WAN, steps=8, cfg=3.0)
    for forecast in ("reuse", "linear"):
        ours = cached(model, DeltaDiT(switch=0.45, forecast=forecast), Fixed(3))
        assert error(sample(ours, WAN, steps=8, cfg=3.0), plain) < 1e-5
        assert "model calls 4 of 8" in report_of(ours)


def test_a_line_through_two_differences(deep):
    """With order 1 a forecast differs from reuse as soon as two differences are kept, not before."""
    runs = {
        (forecast, steps): sample(cached(deep, DeltaDiT(switch=1.0, forecast=forecast), Fixed(2), last=1), WAN,
                                  steps=steps)
        for forecast in ("reuse", "linear") for steps in (3, 5)
    }  # fmt: skip
    assert torch.equal(runs["reuse", 3], runs["linear", 3])
    assert not torch.equal(runs["reuse", 5], runs["linear", 5])


def test_prompts_together_and_apart(comfy, monkeypatch):
    """Two stacks and two streams, front spans over both stacks."""
    import comfy.samplers

    tiny, model = BY_NAME["hunyuan_video"], hunyuan()
    ours = cached(model, DeltaDiT(switch=0.0), Fixed(2))
    together = sample(ours, tiny, steps=4, cfg=3.0)
    assert "model calls 2 of 4" in report_of(ours)
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    apart = sample(ours, tiny, steps=4, cfg=3.0)
    assert "model calls 4 of 8" in report_of(ours)
    assert error(apart, together) < 1e-5
    assert error(sample(model, tiny, steps=4, cfg=3.0), together) > 1e-4, "something was left out"


@pytest.mark.parametrize("method", [DeltaDiT(switch=0.0), FirstBlock(threshold=1e-6)], ids=["delta", "first block"])
def test_context_windows_keep_apart(comfy, method):
    """Three windows of another content each: a difference of another window would show."""
    import comfy.context_windows as windows
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    tiny = replace(BY_NAME["wan"], latent=(1, 16, 9, 8, 8))
    model = ContextWindowsManualNode.execute(
        tiny.model(), 4, 1, windows.ContextSchedules.STATIC_STANDARD, 1, False, windows.ContextFuseMethods.PYRAMID, 2,
        False).result[0]
    with block_runs(model) as forwards:
        outputs = still(cached(model, method, Fixed(9)), tiny, steps=3)
    left = [1] if isinstance(method, DeltaDiT) else [0]
    assert forwards == [[0, 1]] * 3 + [left] * 6
    assert all(error(output, outputs[0]) < 2e-5 for output in outputs)


def test_a_text_of_another_length_lets_the_blocks_run(comfy, monkeypatch):
    """Two prompts in a batch for which core repeats the shorter text, then apart: what was kept of it does not fit."""
    import comfy.samplers

    tiny = BY_NAME["cogvideox"]
    model = cached(tiny.model(), DeltaDiT(switch=0.0), Fixed(9))
    usual = comfy.samplers.can_concat_cond
    with block_runs(model) as calls:
        monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b or (len(calls) < 1 and usual(a, b)))
        outputs = still(model, tiny, prompts=(tiny.prompt(1, 6), tiny.prompt(2, 12)), steps=3)
    assert calls == [[0, 1], [0, 1], [1], [1], [1]], "the shorter text runs again, the longer one is as it was"
    assert error(outputs[2], outputs[1]) < 2e-5


def test_a_share_of_no_block_stands_aside(comfy):
    model = cached(BY_NAME["wan"].model(), DeltaDiT(cached_fraction=0.2), Fixed(2))
    sample(model, BY_NAME["wan"])
    assert "the share of cached blocks comes to no block of this model" in report_of(model)


@pytest.mark.parametrize(("taken", "later"), [(0, [1, 2, 3, 4]), (1, [3, 4]), (2, [0, 1, 3, 4])])
def test_a_block_that_another_pack_took(deep, taken, later):
    """Its patch answers without the block. Within the span it is left out with the others, at an end nothing is."""
    patched = deep.clone()
    patched.set_model_patch_replace(lambda args, extra: {"img": args["img"] + 1.0}, "dit", "double_block", taken)
    want = still(patched, WAN, steps=1)[0]
    with block_runs(deep) as forwards:
        outputs = still(cached(patched, DeltaDiT(switch=0.0), Fixed(9)), WAN, steps=3)
    assert forwards == [[i for i in range(5) if i != taken], later, later]
    assert all(error(output, want) < 2e-5 for output in outputs)


def test_a_block_that_another_pack_takes_later(deep):
    """The sum had its place at the block that is gone: the model runs again, with all blocks."""

    class Patch:
        taken = False

        def __call__(self, args, extra):
            return {"img": args["img"]} if self.taken else extra["original_block"](args)

    def take():
        patch.taken = True

    patch, patched = Patch(), deep.clone()
    patched.set_model_patch_replace(patch, "dit", "double_block", 2)
    with block_runs(deep) as forwards:
        still(cached(patched, DeltaDiT(switch=0.0), Fixed(9)), WAN, steps=2, after=take)
    assert forwards == [[0, 1, 2, 3, 4], [3, 4], [0, 1, 3, 4]]


@pytest.mark.parametrize("name", ["ltxv", "cosmos", "wan_vace"])
def test_attention_keeps_the_numbers_of_its_blocks(comfy, name):
    """Front blocks are left out; the attention of the others is still known by the layer that it is."""
    from interspatial.models import host
    from interspatial.models.report import Card

    layers: list[set] = []
    tiny = BY_NAME[name]
    model = cached(tiny.model(), DeltaDiT(cached_fraction=0.5, switch=0.0), Fixed(2))

    class Look:
        def why_not(self, call):
            layers.extend(set() for _ in range(call.run.step + 1 - len(layers)))
            layers[call.run.step].add(call.layer)
            return "only looks"

    sample(host.attach_attention(model, Card("look", "sparse"), Look()), tiny, steps=3)
    assert layers[0] == layers[2] == set(tiny.layers)
    assert layers[1] == set(tiny.layers) - {0}
