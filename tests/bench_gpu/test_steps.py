"""The whole-step bench on tiny models: what it adds up is what runs, and its pieces are what they are said to be."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

MODULES = ("models", "overhead", "stage", "step_clock", "step_rows", "step_runs", "step_schedule", "step_variants",
           "steps")  # fmt: skip
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def gpu(comfy: Path) -> Iterator[SimpleNamespace]:
    """The modules of the bench; ComfyUI is there."""
    yield SimpleNamespace(**{name: importlib.import_module(f"bench.gpu.{name}") for name in MODULES})


@pytest.fixture(scope="module")
def tiny(gpu: SimpleNamespace):
    """A Wan of two blocks on 40 tokens, by the presets of a small Wan."""
    from interspatial.models.attention.presets import WAN_SMALL

    network = gpu.models.SMALL_WAN
    config = network.config | {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2}
    shape = replace(gpu.models.SMOKE["wan480"], network=replace(network, config=config), text=(8, 4096),
                    latents=((1, 16, 2, 8, 10),), preset=WAN_SMALL, rounds=1)  # fmt: skip
    with torch.inference_mode():
        return shape, gpu.models.random_model(shape.network, "cpu")


@pytest.fixture
def clock(gpu: SimpleNamespace):
    return gpu.step_clock.Clock(iter(range(10**6)).__next__)


@pytest.mark.parametrize("density, cache", [(0.2, True), (0.2, False), (None, True)])
@pytest.mark.parametrize("steps", [12, 50])
def test_a_run_is_made_of_the_steps_that_it_is_added_up_from(gpu, tiny, clock, monkeypatch, density, cache, steps):
    """Each evaluation of the network and each call that sparse attention takes is counted in a real run."""
    from interspatial.models.attention import SparseAttention
    from interspatial.models.call import AttentionCall

    shape, model = tiny
    evaluated, taken = [], set()
    attend = SparseAttention.attend

    def noted(self, call: AttentionCall):
        taken.add(call.run.step)
        return attend(self, call)

    monkeypatch.setattr(SparseAttention, "attend", noted)
    patched = clock.on(model)
    if density is not None:  # a small Wan's preset has the first two layers dense: all of this one's
        when = replace(gpu.step_runs.PRESET_WHEN, dense_layers=(0,))
        patched = gpu.step_variants.sparse(patched, density, when)
    if cache:
        patched = gpu.step_variants.cached(patched, gpu.step_variants.preset_cache())
    network = model.model.diffusion_model
    handle = network.register_forward_hook(lambda *args: evaluated.append(len(clock.seconds)))
    try:
        gpu.step_clock.run(patched, clock, shape, steps)
    finally:
        handle.remove()
    real = ["forecast" if step not in evaluated else "sparse" if step in taken else "dense" for step in range(steps)]
    assert gpu.step_schedule.kinds_of(patched, shape.preset, steps) == real
    assert len(set(real)) == 1 + (density is not None) + cache


def test_the_sum_of_a_run(gpu, tiny):
    seconds = {"dense": 8.0, "sparse": 2.0, "forecast": 0.25}
    assert gpu.step_schedule.whole_run(["dense", "sparse", "forecast", "sparse"], seconds) == 12.25
    preset = replace(tiny[0].preset, dense_layers=(0,))  # half of two layers: half of the way from sparse to dense
    assert gpu.step_schedule.with_dense_layers(tiny[1], preset, seconds) == {**seconds, "sparse": 5.0}


def test_random_weights_keep_activations_as_they_are(gpu, clock):
    """The full number of blocks. ComfyUI computes Wan in float16 on a card, which ends at 65504."""
    wan = gpu.models.SMALL_WAN
    network = replace(wan, config=wan.config | {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 40})
    model = gpu.models.random_model(network, "cpu")
    weights = model.model.diffusion_model.state_dict()
    assert abs(weights["blocks.3.ffn.0.weight"].std() * math.sqrt(128) - 1) < 0.05
    assert abs(weights["blocks.3.self_attn.norm_q.weight"].mean() - 1) < 0.02
    assert weights["blocks.3.modulation"].abs().max() < 0.2 and weights["blocks.3.ffn.0.bias"].std() < 0.03
    assert all(x.count_nonzero() > 0.99 * x.numel() for x in weights.values())
    largest = 0.0

    def look(module, args, out):
        nonlocal largest
        largest = max(largest, float(out.abs().max()))

    for block in model.model.diffusion_model.blocks:
        block.register_forward_hook(look)
    shape = replace(gpu.models.SMOKE["wan480"], latents=((1, 16, 2, 6, 10),), text=(8, 4096))
    ran = gpu.step_clock.run(clock.on(model), clock, shape, 1)
    assert ran.finite and 1 < largest < 100


@pytest.mark.parametrize("name", ["hunyuan720", "minimax_h3"])
def test_other_families_are_what_they_are_taken_for(gpu, clock, name):
    shape = gpu.models.SMOKE[name]
    network = shape.network.with_depth(0.4)
    assert 0 < network.depth < shape.network.depth
    model = gpu.models.random_model(network, "cpu")
    assert sum(gpu.step_variants.stacks(model).values()) == network.depth
    sparse = gpu.step_variants.sparse(clock.on(model), 0.3)
    ran = gpu.step_clock.run(sparse, clock, shape, 1)
    assert ran.finite and f"sparse {network.depth}/{network.depth} layers" in ran.report


def test_real_sizes_are_the_real_models(gpu):
    """Numbers of weights as published, in billions, and tokens as the spec of sparse attention counts them."""
    billions = {"wan720": 14.3, "hunyuan720": 12.8, "minimax_h3": 32.9}
    for name, expected in billions.items():
        weights = gpu.models.SHAPES[name].network.on_meta(torch.bfloat16).values()
        assert sum(x.numel() for x in weights) / 1e9 == pytest.approx(expected, rel=0.03)
    tokens = {name: shape.tokens for name, shape in gpu.models.SHAPES.items()}
    assert tokens == {"wan480": 32760, "wan720": 75600, "hunyuan720": 118800, "minimax_h3": 107856}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("split_output", [False, True])
def test_overrides_answer_as_comfyui_does(gpu, split, split_output):
    from comfy.ldm.modules.attention import attention_pytorch

    draw = torch.Generator().manual_seed(0)
    H, D, N, M = 2, 8, 7, 5
    shape = lambda n: (1, H, n, D) if split else (1, n, H * D)  # noqa: E731
    q, k, v = (torch.randn(shape(n), generator=draw) for n in (N, M, M))
    how = {"skip_reshape": split, "skip_output_reshape": split_output}
    dense = attention_pytorch(q, k, v, H, **how)
    override = gpu.step_variants.by_backend(gpu.step_variants.OTHER_BACKEND["cpu"][1])
    torch.testing.assert_close(override(None, q, k, v, H, **how), dense)
    values = gpu.step_variants.values_only(None)
    torch.testing.assert_close(values(attention_pytorch, q, k, v, H, **how), dense)  # not to itself
    # with queries and keys of one token that counts alone, self attention is the values of that token
    own = attention_pytorch(1e4 * (eye := _places(N, H, D, split)), eye, w := torch.randn(shape(N)), H, **how)
    torch.testing.assert_close(values(attention_pytorch, eye, eye, w, H, **how), own)


def _places(N: int, H: int, D: int, split: bool) -> torch.Tensor:
    """Keys that are orthogonal for the N tokens of every head, N <= D."""
    eye = torch.eye(D)[:N][None, :, None].expand(1, N, H, D)
    return eye.transpose(1, 2) if split else eye.flatten(-2)


def test_a_short_run_has_one_block_of_each_kind(gpu, clock):
    shape = gpu.models.SMOKE["hunyuan720"]
    model = gpu.models.random_model(shape.network, "cpu")
    ran = []
    network = model.model.diffusion_model
    for name in ("double_blocks", "single_blocks"):
        for number, block in enumerate(getattr(network, name)):
            block.register_forward_hook(lambda *args, key=(name, number): ran.append(key))
    gpu.step_clock.run(gpu.step_variants.short(clock.on(model)), clock, shape, 1)
    assert ran == [("double_blocks", 0), ("single_blocks", 0)]


def test_quantised_layers_lie_in_memory_of_their_own(gpu, tiny):
    from interspatial.models.host.quant_loading import kept_as
    from interspatial.models.quant.recipe import Choice

    for bits, size in ((8, 1.0), (4, 0.5)):
        model = gpu.models.quantised_model(tiny[0].network, Choice("vidit_q", bits), 8, "cpu")
        kept, = kept_as(model)
        assert (kept.ours, kept.layers) == (True, 20)  # eight of attention and two of the MLP in each of two blocks
        assert kept.nbytes / kept.weights == pytest.approx(size, rel=0.1)
        blocks = model.model.diffusion_model.blocks
        places = [layer._parameters["weight"]._qdata.data_ptr() for block in blocks for layer in
                  (block.self_attn.q, block.self_attn.k, block.cross_attn.q, block.ffn[0])]  # fmt: skip
        assert len(set(places)) == len(places)


def bench_of(gpu, folder: Path, seconds: float = 1000):
    return gpu.stage.Bench.of(folder / "rows.json", "cpu", True, seconds)


def test_a_stage_leaves_all_its_rows_once(gpu, tiny, tmp_path, capsys):
    bench = bench_of(gpu, tmp_path)
    gpu.steps.Whole(bench, tiny[0]).everything()
    keys = [(row["what"], row["setting"]) for row in bench.rows]
    assert len(set(keys)) == len(keys) and not [row for row in bench.rows if "failed" in row]
    assert {setting for what, setting in keys if what == "step"} == {
        "dense, ComfyUI", "dense, flash", "dense", "sparse 0.2", "aside", "sparse 0.2 + cache", "sparse 0.4",
        "sparse 0.1", "sparse 0.3", "sparse 0.2, single",
        "cache", "w8a8", "w8a8 + sparse 0.2", "w8a8 + sparse 0.2 + cache", "w4a8"}
    assert {what for what, _ in keys} == {"model", "step", "cold", "overhead", "share", "run", "checked"}
    assert all(row["finite"] for row in bench.rows if row["what"] == "step")
    # bars.py reads these
    judged = [row for row in bench.rows if row["what"] == "run" and row["preset_density"]]
    assert {row["setting"] for row in judged} >= {"sparse 0.4", "sparse 0.4 + cache"}
    again = bench_of(gpu, tmp_path)
    gpu.steps.Whole(again, tiny[0]).everything()
    assert again.rows == bench.rows


def test_what_fails_leaves_its_reason_and_the_rest_goes_on(gpu, tiny, tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("no kernel for this card\nmore")

    monkeypatch.setattr(gpu.step_variants, "sparse", broken)
    bench = bench_of(gpu, tmp_path)
    whole = gpu.steps.Whole(bench, tiny[0])
    whole.dense_backends()
    whole.in_turn()
    whole.cached_step("cache", lambda: whole.base)
    failed = {row["setting"]: row["failed"] for row in bench.rows if "failed" in row}
    assert set(failed) == {"sparse 0.2", "aside"} and failed["aside"] == "RuntimeError: no kernel for this card"
    assert bench.has(what="step", setting="dense") and bench.has(what="step", setting="cache")


def test_nothing_begins_behind_the_deadline(gpu, tiny, tmp_path, capsys):
    bench = bench_of(gpu, tmp_path, seconds=-1)
    gpu.steps.Whole(bench, tiny[0]).everything()
    assert bench.rows == []
    whole = gpu.steps.Whole(bench, tiny[0])
    whole.bench.put(what="step", shape=tiny[0].name, setting="dense, ComfyUI", seconds=1.0)
    whole.in_turn()
    whole.cached_step("cache", lambda: whole.base)
    assert len(bench.rows) == 1


def test_overhead_is_a_difference_for_each_call(gpu):
    seconds = {"no patch": [5e-3, 4e-3], "x": [6e-3, 4.8e-3]}
    assert gpu.overhead.microseconds(seconds, "x") == pytest.approx(1e6 * 0.8e-3 / gpu.overhead.CALLS)
