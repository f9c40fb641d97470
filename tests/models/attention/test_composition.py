"""Sparse attention with other patches: ComfyUI's own nodes in both orders of wiring, and a second sparse patch."""

from __future__ import annotations

import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH is not set", allow_module_level=True)

from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, ErrorTarget, SparseAttention, When
from interspatial.models.report import Card
from interspatial.tests.models.probes import attach as attach_probe
from interspatial.tests.models.tinies import BY_NAME, noise, sample

SMALL = Blocks("tile", 2)


def sparse(model, density: float = 0.4, name: str = "sparse", **settings):
    settings = {"when": When(), "blocks": SMALL, **settings}
    return host.attach_attention(model, Card(name, "sparse"), SparseAttention(METHODS["draft"](density), **settings))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


def easy_cache(model):
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, reuse_threshold=3.0, start_percent=0.2, end_percent=0.9, verbose=False).args[0]


def windows(model):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    return ContextWindowsManualNode.execute(
        model, context_length=2, context_overlap=1, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False,
    ).args[0]  # fmt: skip


def lora(model):
    """A LoRA on every query projection of the self attentions."""
    import comfy.sd

    weights = {}
    for name, weight in model.model.state_dict().items():
        if name.endswith("self_attn.q.weight"):
            stem = name.removesuffix(".weight").removeprefix("diffusion_model.")
            rows, columns = weight.shape
            weights[f"diffusion_model.{stem}.lora_up.weight"] = noise(rows, 2, seed=1)
            weights[f"diffusion_model.{stem}.lora_down.weight"] = noise(2, columns, seed=2)
    patched, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
    return patched


def block_replacement(model):
    """What ControlNet-like nodes do: a block that runs the original and adds to it."""
    model = model.clone()

    def replacement(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] + out["img"].roll(1, -1)}

    model.set_model_patch_replace(replacement, "dit", "double_block", 0)
    return model


def other_backend(model):
    """A node that chooses an attention backend by the override slot, and chains nothing."""
    model = model.clone()
    options = model.model_options["transformer_options"]

    def override(func, *args, **kwargs):
        return func(*args, **kwargs)

    options["optimized_attention_override"] = override
    return model


OTHERS = {"easy cache": easy_cache, "windows": windows, "lora": lora, "block": block_replacement}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_either_order_of_wiring_gives_the_same(comfy, other):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    run = {"steps": 6, "cfg": 3.0, "prompts": (tiny.prompt(1), tiny.prompt(2))}
    alone, with_other = sample(sparse(model), tiny, **run), sample(other(model), tiny, **run)
    before, after = sparse(other(model)), other(sparse(model))
    out = sample(before, tiny, **run)
    assert torch.equal(sample(after, tiny, **run), out)
    assert out.isfinite().all()
    assert apart(out, alone) > 1e-4, "the other patch is there"
    assert apart(out, with_other) > 1e-6, "sparse attention is there"
    full = sample(sparse(other(model), 1.0), tiny, **run)
    assert apart(full, with_other) < 1e-4, "keeping everything, it is the other patch alone"
    for patched in (before, after):
        assert "kept" in host.report_of(patched)


def test_skipped_steps_are_not_counted_as_sparse(comfy):
    tiny = BY_NAME["wan"]
    patched = easy_cache(sparse(tiny.model()))
    sample(patched, tiny, steps=8)
    line = host.report_of(patched)
    steps = int(line.split(" layers, ")[1].split("/")[0])
    assert 0 < steps < 8, line


def test_a_backend_node_before_is_below_and_after_is_reported(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    out = sample(sparse(model), tiny)
    assert torch.equal(sample(sparse(other_backend(model)), tiny), out)
    replaced = other_backend(sparse(model))
    assert torch.equal(sample(replaced, tiny), sample(model, tiny))
    assert "replaced ComfyUI's own hook" in host.report_of(replaced)


def test_of_two_sparse_patches_the_last_one_runs_and_the_other_says_why(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    both = sparse(sparse(model, 0.2, "first"), 0.5, "second")
    assert torch.equal(sample(both, tiny), sample(sparse(model, 0.5), tiny))
    second, first = host.report_of(both).splitlines()
    assert second.startswith("second 2/2 layers, 2/2 steps, kept")
    assert first == "first 0/2 layers, 0/2 steps, unpatched: second above it took the call (4)"


def test_what_the_outer_sparse_patch_leaves_goes_to_the_inner(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    both = sparse(sparse(model, 0.2, "early"), 0.5, "late", when=When(first=1))
    sample(both, tiny)
    late, early = host.report_of(both).splitlines()
    assert late.startswith("late 2/2 layers, 1/2 steps") and early.startswith("early 2/2 layers, 1/2 steps")


def test_an_outer_method_that_asks_for_dense_gets_the_sparse_one(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    watched = attach_probe(sparse(model), "control", "control", [])
    assert torch.equal(sample(watched, tiny), sample(sparse(model), tiny))
    assert "took the call" not in host.report_of(watched)


def test_values_that_are_not_finite_go_to_the_hook_below(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    seen = []

    def spoil(call):
        q = call.q.clone()
        q[:, 3, 0] = torch.nan if call.layer == 0 else torch.inf
        return call.dense(q, call.k, call.v, mask=call.mask, layout=call.layout)

    def watch(func, q, *args, **kwargs):
        seen.append(bool(q.isfinite().all()))
        return func(q, *args, **kwargs)

    hooked = model.clone()
    hooked.model_options["transformer_options"]["optimized_attention_override"] = watch
    patched = attach_probe(sparse(hooked), "control", "control", [], act=spoil)
    with_nan = sample(patched, tiny)
    assert with_nan.isnan().any()
    assert not all(seen)
    assert "queries, keys or values are not finite (4)" in host.report_of(patched)


class Stops:
    """Ends the run in the second step, as an interrupt does."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.armed = error, True

    def why_not(self, call) -> str:
        if self.armed and call.forward.position.step == 1 and call.layer == 1:
            raise self.error()
        return "it only watches"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", ["interrupt", "error", "other shape"])
def test_the_run_after_a_bad_one_is_a_fresh_one(comfy, name, how):
    import comfy.model_management

    tiny = BY_NAME["wan"]
    method = SparseAttention(METHODS[name](), When(), SMALL)
    model = tiny.model()
    run = {"steps": 3, "cfg": 3.0}
    fresh = sample(host.attach_attention(model, Card("sparse", "sparse"), method), tiny, **run)
    error = {"interrupt": comfy.model_management.InterruptProcessingException, "error": RuntimeError}.get(how)
    stops = Stops(error or RuntimeError)
    patched = host.attach_attention(model, Card("sparse", "sparse"), method)
    patched = host.attach_attention(patched, Card("stop", "measure"), stops)
    if error:
        with pytest.raises(error):
            sample(patched, tiny, **run)
    else:
        stops.armed = False
        sample(patched, tiny, latent=torch.zeros(1, 16, 2, 10, 6), **run)
    stops.armed = False
    assert torch.equal(sample(patched, tiny, **run), fresh)


def test_an_error_target_composes_too(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    method = SparseAttention(METHODS["draft"](), When(), SMALL, target=ErrorTarget(0.01))
    patched = windows(host.attach_attention(lora(model), Card("sparse", "sparse"), method))
    out = sample(patched, tiny, cfg=3.0)
    assert out.isfinite().all()
    assert "density in % by layer" in host.report_of(patched)

