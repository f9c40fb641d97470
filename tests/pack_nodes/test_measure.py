"""Compare Videos and Measure Run in ComfyUI: outputs, errors, and the right record under the executor's cache."""

from __future__ import annotations

import math
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch


def clip(frames=5, height=24, width=32, seed=0):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def measure(comfy):
    """The module under test."""
    from interspatial.nodes import measure

    return measure


@pytest.fixture
def model(comfy):
    """A tiny random Wan model."""
    from interspatial.tests.models.tiny_dits import wan

    return wan()


def prompt(seed):
    return [[torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def sample(model, steps=3, cfg=2.0, sampler="euler", seed=1):
    import nodes

    latent = {"samples": torch.zeros(1, 16, 3, 4, 4)}
    with torch.inference_mode():
        out, = nodes.common_ksampler(model, seed, steps, cfg, sampler, "simple", prompt(1), prompt(2), latent)
    return out["samples"].clone()


# ---------------------------------------------------------------------------------------------------- Compare Videos

def test_compare_returns_picture_report_and_figures(measure):
    reference = clip() * 0.5
    picture, report, psnr, ssim = measure.CompareVideos.execute(reference, reference + 0.1).args
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[-1] == 3
    assert picture.min() >= 0 and picture.max() <= 1
    assert psnr == pytest.approx(20.0, abs=1e-3)
    assert 0 < ssim < 1
    assert report.splitlines()[0] == "test against reference"
    assert "PSNR 20.00 dB over the clip" in report


def test_compare_shows_picture_and_text_on_the_node(measure):
    out = measure.CompareVideos.execute(clip(), clip(), test_label=" two\nlines ")
    assert out.ui["images"][0]["filename"].endswith(".png")
    assert out.ui["text"] == (out.args[1],)
    assert out.args[1].startswith("two lines against reference")
    assert "every frame is identical" in out.args[1]
    assert out.args[2] == math.inf


def test_compare_leaves_alpha_out(measure):
    reference = torch.cat((clip(), torch.ones(5, 24, 32, 1)), dim=-1)
    assert measure.CompareVideos.execute(reference, clip()).args[2] == math.inf


def test_compare_says_what_is_wrong(measure):
    with pytest.raises(ValueError, match=r"^Compare Videos: the reference has 5 frames and the test 4\."):
        measure.CompareVideos.execute(clip(), clip(4))
    with pytest.raises(ValueError, match=r"^Compare Videos: the test video has 1 frame"):
        measure.CompareVideos.execute(clip(), clip(1))


def test_compare_can_be_interrupted(measure):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        measure.CompareVideos.execute(clip(), clip())


# ------------------------------------------------------------------------------------------------------- Measure Run

@pytest.mark.parametrize(("sampler", "calls"), [("euler", 3), ("heun", 5)])
def test_a_run_is_recorded_and_changes_nothing(measure, model, sampler, calls):
    measured, measurement = measure.MeasureRun.execute(model).args
    assert measurement.runs == ()
    assert torch.equal(sample(measured, sampler=sampler), sample(model, sampler=sampler))
    run, = measurement.runs   # the run of the unmeasured model left nothing
    assert run.steps == 3
    assert run.model_calls == calls   # both conditions go as one batch
    assert run.seconds > 0 and run.setup_seconds >= 0
    assert run.seconds_per_step == pytest.approx(run.seconds / 3)
    assert run.peak_bytes > 100 << 20   # torch and ComfyUI alone are more
    assert run.origin is None


def test_each_run_adds_a_record(measure, model):
    measured, measurement = measure.MeasureRun.execute(model).args
    sample(measured)
    first = measurement.runs[0]
    sample(measured, steps=2)
    assert measurement.runs[0] is first
    assert [run.steps for run in measurement.runs] == [3, 2]


def test_measured_twice_and_cloned_by_later_patches(measure, model):
    once, outer = measure.MeasureRun.execute(model).args
    twice, inner = measure.MeasureRun.execute(once).args
    sample(twice.clone(), steps=2)
    assert [run.model_calls for run in outer.runs] == [2]
    assert [run.model_calls for run in inner.runs] == [2]


def test_patches_are_inside_whatever_the_order(measure, model):
    import comfy.patcher_extension as extension

    seen = []
    patched = model.clone()
    measured, measurement = measure.MeasureRun.execute(patched).args

    def early(executor, *args, **kwargs):
        seen.append(len(measurement.runs))
        return executor(*args, **kwargs)

    measured.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, "aaa", early)
    sample(measured)
    assert seen == [0] and len(measurement.runs) == 1


def test_a_failed_run_leaves_no_record_and_no_trace(measure, model):
    import comfy.patcher_extension as extension

    measured, measurement = measure.MeasureRun.execute(model).args
    broken = measured.clone()

    def fail(executor, *args, **kwargs):
        raise RuntimeError("stop")

    broken.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "test", fail)
    with pytest.raises(RuntimeError, match="stop"):
        sample(broken)
    assert measurement.runs == ()
    sample(measured)
    assert measurement.runs[0].model_calls == 3


# ----------------------------------------------------------------------------------------- both, in ComfyUI's executor

class Server:
    """As much of the server as the executor talks to."""

    client_id = last_node_id = None
    sockets_metadata: dict = {}  # noqa: RUF012 - never written

    def send_sync(self, *args) -> None:
        pass


@pytest.fixture
def run(measure, model, monkeypatch):
    """run(graph) -> the report of its node "compare", by an executor with ComfyUI's default cache."""
    import execution
    from comfy_api.latest import io

    import nodes

    class Model(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="TestModel", outputs=[io.Model.Output()])

        @classmethod
        def execute(cls):
            return io.NodeOutput(model)

    class Prompt(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="TestPrompt", outputs=[io.Conditioning.Output()])

        @classmethod
        def execute(cls):
            return io.NodeOutput(prompt(1))

    class Latent(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="TestLatent", outputs=[io.Latent.Output()])

        @classmethod
        def execute(cls):
            return io.NodeOutput({"samples": torch.zeros(1, 16, 3, 4, 4)})

    class Decode(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="TestDecode", inputs=[io.Latent.Input("samples")], outputs=[io.Image.Output()])

        @classmethod
        def execute(cls, samples):
            return io.NodeOutput(samples["samples"][0, :3].permute(1, 2, 3, 0).sigmoid())

    for node in (Model, Prompt, Latent, Decode, measure.CompareVideos, measure.MeasureRun):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    executor = execution.PromptExecutor(
        Server(), execution.CacheType.RAM_PRESSURE, {"lru": 0, "ram": 0.0, "ram_inactive": 8.0}
    )

    def run(graph):
        with ThreadPoolExecutor(1) as thread:   # it starts an event loop of its own
            thread.submit(executor.execute, graph, uuid.uuid4().hex, {}, ["compare"]).result()
        assert executor.success, executor.status_messages
        return executor.history_result["outputs"]["compare"]["text"][0]

    return run


def graph(seed=1, steps=2, gain=8.0, second_steps=None):
    """The plain render against one of 1 step; second_steps: the measured model has another sampler, run after it."""
    def sampler(model, seed, steps):
        return {"class_type": "KSampler", "inputs": {
            "model": [model, 0], "seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "simple", "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["latent", 0],
            "denoise": 1.0}}

    nodes = {
        "model": {"class_type": "TestModel", "inputs": {}}, "prompt": {"class_type": "TestPrompt", "inputs": {}},
        "latent": {"class_type": "TestLatent", "inputs": {}},
        "measure": {"class_type": "InterspatialMeasureRun", "inputs": {"model": ["model", 0]}},
        "plain": sampler("model", 1, 1), "measured": sampler("measure", seed, steps),
        "a": {"class_type": "TestDecode", "inputs": {"samples": ["plain", 0]}},
        "b": {"class_type": "TestDecode", "inputs": {"samples": ["measured", 0]}},
        "compare": {"class_type": "InterspatialCompareVideos", "inputs": {
            "reference": ["a", 0], "test": ["b", 0], "test_run": ["measure", 1], "error_gain": gain}},
    }
    if second_steps:
        nodes["other"] = sampler("measure", seed, second_steps)
        nodes["other"]["inputs"]["latent_image"] = ["measured", 0]
        nodes["a"]["inputs"]["samples"] = ["other", 0]
    return nodes


def test_the_record_is_filled_before_it_is_compared(run):
    assert "(2 steps of" in run(graph())


def test_a_cached_clip_keeps_the_record_of_its_own_run(run):
    first = run(graph(seed=1, steps=2))
    assert "(5 steps of" in run(graph(seed=7, steps=5))
    again = run(graph(seed=1, steps=2, gain=16.0))   # Compare Videos runs anew, the sampler's output is cached
    assert "(2 steps of" in again
    timing = [line for line in first.splitlines() if "sampling" in line]
    assert timing == [line for line in again.splitlines() if "sampling" in line]   # the same run, not a new one


def test_two_samplers_behind_one_measured_model(run):
    assert "test: " in run(graph(steps=2, second_steps=4))
    assert "(2 steps of" in run(graph(steps=2, second_steps=4, gain=9.0))


def test_a_measured_model_that_was_not_sampled(run):
    nodes = graph()
    nodes["measured"]["inputs"]["model"] = ["model", 0]
    assert "no run recorded" in run(nodes)
