"""The attention stages of the GPU bench at sizes of a CPU, and the arithmetic that their figures rest on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interspatial.kernels.block_attend import block_attend_reference
from interspatial.kernels.block_plan import check_plan, kept_mask, kept_share
from interspatial.kernels.tuned_tiles import KNOWN
from interspatial.models.attention import METHODS
from interspatial.models.attention.draft import DOUBLE, SINGLE
from interspatial.models.attention.orders import strip, tile
from interspatial.models.layout import arrange

from bench.gpu import activations, attention, ceilings, compiles, first_call, headlines, memory_safe, selection
from bench.gpu.calls import Planned, Sampling, Steady, method_of, steady
from bench.gpu.contenders import Flex, Scene, plan_of, tile_contenders
from bench.gpu.memory_safe import planned_rows
from bench.gpu.published import PUBLISHED, Published
from bench.gpu.shapes import SHAPES
from bench.gpu.stage import Bench
from bench.gpu.timing import NO_TIME, race

RAGGED = arrange([("video", (2, 15, 20)), ("text", 7)])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench.of(tmp_path / "stage.rows.json", "cpu", True, 60)
    KNOWN.remember_in(None)


@pytest.fixture
def scene() -> Scene:
    return Scene(RAGGED, *activations.structured(RAGGED, 2, 32, "cpu", torch.float32), "cpu")


def rows_of(bench: Bench, **key) -> list[dict]:
    return [row for row in bench.rows if all(row.get(name) == value for name, value in key.items())]


def test_attention_of_the_data_is_concentrated_as_published_maps_are():
    layout = arrange([("video", (4, 24, 32))])
    q, k, _ = activations.structured(layout, 8, 128, "cpu", torch.float32)
    held = activations.held(q, k, tile(layout), 0.2, 6)
    assert 0.8 < held.mean() < 0.95
    assert held.min() > 0.4
    noise = [torch.randn_like(q) for _ in "qk"]
    assert activations.held(*noise, tile(layout), 0.2, 6).mean() < 0.35  # of tokens without anything in common


def test_held_is_the_share_of_the_best_blocks():
    layout = arrange([("video", (1, 16, 16))])
    order = tile(layout)  # 4 blocks of 64
    q, k = torch.zeros(1, 256, 1, 16), torch.zeros(1, 256, 1, 16)
    k[0, order.slots[0, 2].long(), 0, 0] = 4.0 * torch.log(torch.tensor(7.0))  # 7 times the weight of the other keys
    q[..., 0] = 1.0
    torch.testing.assert_close(activations.held(q, k, order, 0.25), torch.tensor([0.7]))


def test_rotary_positions_are_relative_and_keep_lengths():
    angle = activations._turns((3, 4, 5), 64, "cpu")
    x, y = (torch.randn(1, 64, generator=torch.Generator().manual_seed(i)).expand(60, -1) for i in range(2))
    x, y = (activations._turned(part, angle) for part in (x, y))
    torch.testing.assert_close(x.norm(dim=-1), x[:1].norm(dim=-1).expand(60))
    product = (x @ y.T).view(3, 4, 5, 3, 4, 5)
    torch.testing.assert_close(product[1, 1, 1, 2, 3, 0], product[0, 0, 2, 1, 2, 1], atol=1e-4, rtol=0)
    assert (product[0, 0, 0, 0, 0, 0] - product[0, 0, 0, 2, 0, 0]).abs() > 1e-3


def test_exact_rows_are_dense_attention(scene: Scene):
    rows = activations.sampled_rows(RAGGED, 40, "cpu")
    q, k, v = (x.double().transpose(1, 2) for x in scene.qkv)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)[:, rows]
    torch.testing.assert_close(activations.exact(*scene.qkv, rows).double(), want, atol=1e-5, rtol=0)


def test_pairs_meet_the_density_and_serve_every_token(scene: Scene):
    plan = plan_of(scene, 0.5, DOUBLE)
    check_plan(plan, RAGGED.tokens, RAGGED.tokens)
    assert plan.q_slots.shape[2] > plan.k_slots.shape[2]
    rows, columns = plan.full[0][0], strip(RAGGED).video[1]  # the text is behind the video
    video = kept_mask(plan)[:, :rows, :columns]
    assert (video.sum((1, 2)) == round(0.5 * rows * columns)).all()
    assert kept_mask(plan)[:, rows:].all() and kept_mask(plan)[..., columns:].all()


@pytest.mark.parametrize("pairs", [False, True])
def test_flex_gets_the_same_blocks(scene: Scene, pairs: bool):
    plan = plan_of(scene, 0.4, DOUBLE if pairs else SINGLE)
    flex = Flex(plan, scene)
    assert torch.equal(flex.mask.to_dense()[0].bool(), kept_mask(plan))
    full, ragged = flex.mask.full_kv_num_blocks[0], flex.mask.kv_num_blocks[0]
    assert torch.equal(full + ragged, kept_mask(plan).sum(-1, dtype=torch.int32))
    q, k, v = flex.lay_out(*scene.qkv)
    assert q.shape[2] == flex.mask.shape[-2] and k.shape[2] == v.shape[2] == flex.mask.shape[-1]
    assert torch.equal(flex.back(q), scene.q)
    inside = flex.mask.mask_mod(0, 0, 0, torch.arange(k.shape[2]))
    assert int(inside.sum()) == RAGGED.tokens


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_by_plan_are_those_of_the_reference(batch: int):
    layout = arrange([("video", (2, 15, 20))])
    q, k, v = (torch.randn(batch, 600, 3, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    plan = plan_of(Scene(layout, q, k, v, "cpu"), 0.3)
    want = block_attend_reference(q, k, v, plan, tail="row")
    for g in (0, 3 * batch - 1):
        tokens, rows = planned_rows(q, k, v, plan, g, plan.q_slots.shape[1] - 1)
        torch.testing.assert_close(rows, want[g // 3, tokens, g % 3], atol=1e-5, rtol=0)
    found = memory_safe.far_end(q, k, v, strip(layout), "cpu")
    assert found["error"] < 1e-5 and found["pooling_error"] < 1e-5


def test_planning_alone_leaves_the_tensors_as_they_are(scene: Scene):
    before = [x.clone() for x in scene.qkv]
    for name in METHODS:
        sampling = Sampling(*scene.qkv, RAGGED)
        runs = Steady(sampling, method_of(name, 0.3, sampling), 0.3)
        runs.begin(Planned)
        runs.go_on()
        runs.attend(Planned)
        assert runs.plan is not None, name
    assert all(torch.equal(x, y) for x, y in zip(scene.qkv, before, strict=True))


def test_later_steps_of_every_method_are_sparse():
    layout = arrange([("video", (5, 11, 14))])
    qkv = activations.structured(layout, 2, 32, "cpu", torch.float32)
    for name in METHODS:
        runs = steady(name, 0.3, Sampling(*qkv, layout))
        runs.attend()
        assert float(kept_share(runs.plan)) < 0.6, name


def test_what_fails_is_a_row_and_does_not_stop_the_others(bench: Bench):
    def broken() -> None:
        raise RuntimeError("no such kernel\nand more")

    key = {"shape": "s", "setting": "x"}
    ran = race({"broken": broken, "good": lambda: torch.ones(2)}, bench, key, error=lambda out: 0.5, rounds=3)
    assert list(ran) == ["good"] and ran["good"].error == 0.5 and len(ran["good"].ms) == 3
    assert bench.rows == [{"what": "broken", **key, "failed": "RuntimeError: no such kernel"}]
    bench.deadline = 0.0
    assert race({"late": broken}, bench, key) == {}
    assert bench.rows[-1]["failed"] == NO_TIME


def test_kernel_contenders_say_why_there_are_none(scene: Scene):
    with pytest.raises(RuntimeError, match="CPU"):
        tile_contenders(scene, plan_of(scene, 0.3), "blocks")


def test_run_follows_from_attention():
    one = Published("x", "draft", "wan720", 0.2, warm=0.2, layers=0.5)
    assert one.dense_calls == pytest.approx(0.6)
    assert headlines.whole_run(one, 4.0, 0.5) == pytest.approx(1 / (0.5 + 0.5 * (0.6 + 0.4 / 4)))
    assert headlines.whole_run(one, 1.0, 0.7) == pytest.approx(1)


def test_published_figures_name_what_is_there():
    for one in PUBLISHED:
        assert one.method in METHODS and one.shape in SHAPES
        assert set(one.settings) <= set(METHODS[one.method].__dataclass_fields__)
        assert (one.density is None) == bool(METHODS[one.method]().own_rule in one.settings or one.method in
                                             ("radial", "attention_tile"))  # fmt: skip


def test_share_of_attention_is_the_measured_one_where_there_is_one(bench: Bench):
    assert headlines.share_of_attention("wan768", bench) == (0.7, "reported")
    steps = Bench.of(bench.path.with_name("wan720.rows.json"), "cpu", True, 60)
    steps.put(what="share", shape="wan720", setting="attention", share=0.61)
    assert headlines.share_of_attention("wan768", bench) == (0.61, "measured")


def test_attention_stage(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "ORDER", ("wan720",))
    monkeypatch.setattr(attention, "DENSITIES", (0.2,))
    monkeypatch.setattr(attention, "ROUNDS", 2)
    attention.run(bench)
    key = {"shape": "wan720", "setting": "density 0.2"}
    dense, = rows_of(bench, what="best dense", **key)
    ours, = rows_of(bench, what="draft, all in", **key)
    assert ours["x_dense"] == pytest.approx(dense["ms"] / ours["ms"])
    assert ours["efficiency"] == pytest.approx(ours["kept"] * ours["x_dense"])
    assert dense["error"] < 0.01 < ours["error"] < 0.3
    row, off = (rows_of(bench, what=f"blocks, tail {tail}", **key)[0] for tail in ("row", "off"))
    assert row["error"] < off["error"]
    assert rows_of(bench, what="flex 64", **key) and rows_of(bench, what="gather, tail row", **key)
    assert "failed" in rows_of(bench, what="blocks, tiles", **key)[0]
    count = len(bench.rows)
    attention.run(bench)  # goes on where it ended
    assert len(bench.rows) == count


@pytest.mark.parametrize("stage", [selection, memory_safe, headlines, ceilings], ids=lambda stage: stage.__name__)
def test_other_stages(stage, bench: Bench, monkeypatch: pytest.MonkeyPatch):
    if hasattr(stage, "ORDER"):
        monkeypatch.setattr(stage, "ORDER", ("hunyuan720",))
    if stage is headlines:
        monkeypatch.setattr(stage, "PUBLISHED", [one for one in PUBLISHED if one.shape == "hunyuan720"][:3])
    stage.run(bench)
    failed = [row["what"] for row in bench.rows if "failed" in row]
    absent = ("dense cudnn", "dense flash", "dense efficient", "dense comfy-kitchen int8", "dense ComfyUI")
    assert set(failed) <= set(absent), bench.rows
    assert sum("ms" in row for row in bench.rows) >= 2


def test_lengths_stage_counts_by_method(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiles, "METHODS", {"draft": METHODS["draft"]})
    monkeypatch.setattr(compiles, "SMALL", compiles.SMALL[:2])
    assert compiles.lengths(bench) == 0
    assert bench.rows[0] | {"compiled": 0, "setting": "draft"} == bench.rows[0]
    bench.deadline = 0.0
    with pytest.raises(TimeoutError):
        compiles.lengths(bench)


def test_first_call_of_a_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    words = ["first_call", "--shape", "wan480", "--device", "cpu", "--smoke", "--warm-up"]
    monkeypatch.setattr(sys, "argv", words)
    first_call.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"warm_up", "first", "first_of_runs", "later"} and min(found.values()) > 0


def test_compiled_kernels_are_counted_by_triton_s_hook():
    triton = pytest.importorskip("triton")
    info = pytest.importorskip("triton.runtime.jit").JitFunctionInfo("module", "attend_kernel", None)
    before = triton.knobs.runtime.jit_post_compile_hook
    with compiles.compiled() as names:
        hook = triton.knobs.runtime.jit_post_compile_hook
        hook(key="k", repr="r", fn=info, compile={}, is_manual_warmup=False, already_compiled=False)
    assert names == ["attend_kernel"]
    assert triton.knobs.runtime.jit_post_compile_hook is before
