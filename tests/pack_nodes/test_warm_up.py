"""Warm Up Kernels as a node, and what it finds on a model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def node(comfy):
    from interspatial.nodes.warm_up import WarmUpKernels

    return WarmUpKernels


@pytest.fixture
def on_a_card(monkeypatch, comfy):
    """As if the CPU were a card that Triton compiles for."""
    from interspatial.models.host import warm_up

    monkeypatch.setattr(warm_up, "why_not", lambda device: None)
    monkeypatch.setattr(warm_up.comfy.model_management, "free_memory", lambda *given: [])


def tiny(name: str = "wan"):
    from interspatial.tests.models.tinies import TINIES

    return next(one for one in TINIES if one.name == name)


def sparse(model, **settings):
    from interspatial.nodes.speed import SparseVideoAttention

    return SparseVideoAttention.execute(model, {"method": "draft", "density": 0.3}, **settings).args[0]


def cached(model):
    from interspatial.nodes.cache import StepCacheNode

    return StepCacheNode.execute(model, {"method": "taylorseer"}, {"schedule": "preset"}).args[0]


def ran(tasks: list) -> list:
    return [task for task in tasks if task.reason is None]


def test_on_a_cpu_it_says_so_and_hands_the_model_on(node, inference):
    model = sparse(tiny().model())
    out, report = node.execute(model).args
    assert out is model
    assert report == "kernels: nothing to warm up: the model runs on the CPU, for which nothing is compiled"


def test_a_model_without_patches_has_nothing(node, on_a_card):
    from interspatial.models.host.warm_up import warm_up_tasks

    (task,) = warm_up_tasks(tiny().model())
    assert task.reason.startswith("no patch on the model has kernels of its own")


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "minimax_h3", "mochi", "ltxv", "flux", "interspatial"])
def test_attention_is_found_in_every_family(name, on_a_card):
    """Against the truth that is written beside the tiny models."""
    from interspatial.models.host.warm_up import look

    one = tiny(name)
    patched = sparse(one.model())
    network = patched.model.diffusion_model
    for latent in (None, {"samples": one.samples()}):
        seen = look(patched, torch.bfloat16, latent)
        assert seen.family.name == one.family and seen.dtype == torch.bfloat16
        assert (seen.heads, seen.dim) in ((1, 128), (2, 64), (12, 128)) and seen.stacks == seen.family.stacks(network)
        kinds = [segment.kind for segment in seen.layout.segments]
        assert set(kinds) == {kind for kind, _ in one.segments} - ({"audio"} if name == "minimax_h3" else set())
        if seen.known:
            assert seen.layout.grid == next(grid for kind, grid in one.segments if kind == "video")


def test_a_model_that_tells_nothing_asks_for_the_latent(on_a_card):
    from interspatial.models.host import warm_up

    model = sparse(tiny("ltxav").model())
    network = model.model.diffusion_model
    for module in network.modules():
        for name in ("heads", "num_heads"):
            vars(module).pop(name, None)
    (task,) = warm_up.warm_up_tasks(model)
    assert "LTXAVModel cannot be followed by sizes alone" in task.reason and "Connect the latent" in task.reason


def test_each_patch_and_each_kind_of_layer_is_a_part(on_a_card, inference):
    from interspatial.models.host.warm_up import warm_up_tasks

    model = cached(sparse(sparse(tiny().model())))
    names = [task.name for task in warm_up_tasks(model, {"samples": tiny().samples()})]
    assert names == ["sparse (DraftAttention)", "sparse (DraftAttention)", "cache (TaylorSeer)"]


def test_quantised_layers_are_found_once_each(on_a_card, inference, quantised):
    from interspatial.models.host.warm_up import warm_up_tasks

    tasks = warm_up_tasks(quantised)
    names = [task.name for task in tasks]
    shapes = [name.split(", ")[1] for name in names]
    assert sorted(shapes) == ["1024 x 256", "256 x 1024", "256 x 256"], "each kind of layer once, not each layer"
    assert all(name.startswith("ViDiT-Q 4-bit, ") and name.endswith(", activations 8-bit") for name in names)
    tasks[0].run()


@pytest.fixture
def quantised(comfy, monkeypatch):
    """A tiny Wan with weights of 4 bits, put back afterwards: tiny models are shared."""
    from interspatial.models.host.quant_layouts import as_weight
    from interspatial.models.quant.format import FORMATS
    from interspatial.tests.models.tiny_dits import wan

    model = wan(dim=256, ffn_dim=1024, num_heads=2, num_layers=2)
    for name, module in model.model.diffusion_model.named_modules():
        if name.startswith("blocks.") and isinstance(module, torch.nn.Linear):
            coded = FORMATS["vidit_q"].encode(module.weight.detach().float(), 4)
            weight = torch.nn.Parameter(as_weight(coded, torch.float32, 8), requires_grad=False)
            monkeypatch.setitem(module._parameters, "weight", weight)
    return model


def test_parts_run_and_one_that_fails_ends_nothing(node, on_a_card, inference):
    from interspatial.models.host.warm_up import warm_up_tasks
    from interspatial.models.warm_up import Task, idle
    from interspatial.models.warm_up_report import perform

    def fail() -> None:
        raise RuntimeError("no room\nsecond line")

    one = tiny()
    tasks = warm_up_tasks(cached(sparse(one.model(), block_side=2)), {"samples": one.samples()})
    assert len(ran(tasks)) == 2
    ticks = []
    report = perform([*tasks, Task("odd", fail), idle("other", "a reason")], torch.device("cpu"), ticks.append)
    lines = report.splitlines()
    assert lines[0].startswith("ready in ") and lines[0].endswith("0 kernels compiled or loaded")
    assert lines[-2:] == ["  failed: RuntimeError: no room", "other: nothing to warm up: a reason"]
    assert [line for line in lines if "nothing was compiled" in line] and ticks == [1, 2, 3, 4]


def test_the_report_names_kernels_tiles_and_backends_that_failed(monkeypatch):
    from interspatial.kernels import weighted_sum
    from interspatial.kernels.triton_compiles import Compiled
    from interspatial.kernels.triton_tiles import TIMED, Choice, Tile, Tuner
    from interspatial.models import warm_up_report
    from interspatial.models.warm_up import Task

    heard = [Compiled("attend_kernel", 2.0, False), Compiled("attend_kernel", 1.5, False),
             Compiled("pool_kernel", 0.0, True)]  # fmt: skip
    tuner = Tuner("attend")
    monkeypatch.setattr(weighted_sum.BACKENDS, "failures", {})

    def run() -> None:
        tile = Tile(64, 64, 4, 3)
        times = {tile: 1.234, Tile(64, 32, 4, 2): 2.0}
        tuner.chosen[torch.device("cuda"), 128, "row"] = [Choice(tile, TIMED, times)]
        weighted_sum.BACKENDS.failures["triton", torch.device("cuda"), torch.float32, 8] = "it failed before"

    class Listening:
        def __enter__(self):
            return heard

        def __exit__(self, *given) -> None:
            pass

    monkeypatch.setattr(warm_up_report, "listening", Listening)
    parts = {"TUNER": [SimpleNamespace(TUNER=tuner)], "BACKENDS": [weighted_sum]}
    monkeypatch.setattr(warm_up_report, "_parts", lambda name: parts[name])
    lines = warm_up_report.perform([Task("sparse", run)], torch.device("cpu"), lambda done: None).splitlines()
    assert lines[0].endswith(", 3 kernels compiled or loaded")
    assert lines[2:] == [
        "  attend_kernel: 2 compiled in 3.5 s",
        "  pool_kernel: 1 from Triton's cache",
        "  tile of attend 128 row: M 64, N 64, warps 4, stages 3; timed now of 2, 1.23 ms",
        "  A weighted sum: triton: it failed before",
    ]


def test_an_interrupt_ends_it(node, on_a_card, monkeypatch):
    import comfy.model_management as manage

    model = cached(tiny().model())
    manage.interrupt_current_processing(True)
    with pytest.raises(manage.InterruptProcessingException):
        node.execute(model)


def test_measured_tiles_are_kept_in_the_users_folder(comfy, tmp_path, monkeypatch):
    import folder_paths
    from interspatial.kernels.triton_tiles import Tile
    from interspatial.kernels.tuned_tiles import Card, TunedTiles, entry
    from interspatial.models.host import warm_up

    known = TunedTiles(tmp_path / "none.json")
    monkeypatch.setattr(warm_up, "KNOWN", known)
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path / "user"))
    warm_up.remember_tiles()
    assert not (tmp_path / "user").exists()
    known.remember(Card("card", "card, 9.0"), "attend", entry(Tile(64, 64, 4, 3), {}))
    found = json.loads((tmp_path / "user" / "interspatial" / "tuned_tiles.json").read_text())
    assert found["card, 9.0"]["attend"]["tile"]["M"] == 64


def test_what_triton_compiles_is_heard(tmp_path, monkeypatch):
    """A kernel compiled for a card that is not here, then found in the cache on disk."""
    compiler = pytest.importorskip("triton.backends.compiler")
    import triton
    from interspatial.kernels import triton_weighted_sum_kernel as made
    from interspatial.kernels.triton_compiles import listening
    from triton.compiler import ASTSource

    if made.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set, so nothing is compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = made.sum_kernel
    constants = {"K": 1, "UNIT": 8, "BLOCK": 256}
    types = {name: "*fp32" if name[0] == "x" or name == "out" else "fp32" if name[0] == "w" else "i32"
             for name in kernel.arg_names if name not in constants}  # fmt: skip
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    outside = []
    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = lambda **told: outside.append(told["cache_hit"])
    try:
        with listening() as heard:
            for _ in range(2):
                triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32))
        assert triton.knobs.compilation.listener is not None
        triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32))
    finally:
        triton.knobs.compilation.listener = before
    assert [one.cached for one in heard] == [False, True] and {one.kernel for one in heard} == {"sum_kernel"}
    assert 0 < heard[0].seconds < 60 and outside == [False, True, True]
