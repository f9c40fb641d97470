"""Records and peak memory without ComfyUI; the wrappers in a real sampler are tested in tests/nodes/test_measure.py."""

import dataclasses

import pytest
import torch
from interspatial.models.measure import memory, summary
from interspatial.models.measure.metrics import compare
from interspatial.models.measure.stopwatch import Measurement, RunRecord


def record(seconds=2.0, origin=None, peak=1 << 30):
    return RunRecord(seconds, 0.5, 4, 8, peak, "whole process", origin)


def test_the_run_behind_a_clip_is_found_by_its_origin():
    measurement = Measurement()
    assert measurement.behind(frozenset()) is None
    runs = [record(1.0, "a"), record(2.0, "b"), record(3.0, "a"), record(4.0, "c")]
    for run in runs:
        measurement.append(run)
    assert measurement.behind(frozenset({"b", "x"})) is runs[1]
    assert measurement.behind(frozenset({"a"})) is runs[2]   # made twice: the later one
    assert measurement.behind(frozenset({"x"})) is runs[3]   # unknown: the last one
    assert measurement.runs == tuple(runs)


def test_records_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().seconds = 1.0


def test_peak_memory_of_the_process_sees_a_passing_allocation():
    before = memory.resident_bytes()
    with memory.PeakMemory(torch.device("cpu")) as peak:
        block = torch.zeros(1 << 26)   # 256 MiB
        block += 1
        memory.threading.Event().wait(5 * memory.PERIOD)
        del block
    assert peak.what == "whole process"
    assert peak.bytes - before > 200 << 20


def test_the_watching_thread_ends_when_the_work_fails():
    with pytest.raises(ZeroDivisionError), memory.PeakMemory(torch.device("cpu")) as peak:
        _ = 1 / 0
    assert not peak.thread.is_alive()


def test_a_device_with_a_peak_counter_is_asked(monkeypatch):
    class Counter:
        reset = 0

        def reset_peak_memory_stats(self, device):
            self.reset += 1

        def max_memory_allocated(self, device):
            return 12345 if self.reset else -1

    monkeypatch.setattr(memory, "peak_counter", lambda device: Counter())
    with memory.PeakMemory(torch.device("cuda:0")) as peak:
        pass
    assert (peak.bytes, peak.what) == (12345, "tensors on cuda:0")


def test_only_devices_that_count_have_a_counter():
    assert memory.peak_counter(torch.device("cpu")) is None
    assert memory.peak_counter(torch.device("mps")) is None
    assert memory.peak_counter(torch.device("cuda")) is torch.cuda


def test_report_lines():
    clip = torch.rand(5, 12, 12, 3)
    found = compare(clip, (clip + 0.1).clamp(0, 1))
    lines = summary.summarize(found, (12, 12), 16, [("dense", record(4.0)), ("sparse", record(2.0, peak=3 << 29))])
    assert lines[0] == "5 frames of 12 x 12, 0.31 s at 16 frames per second"
    assert lines[-1] == "sparse against dense: 2.00 times as fast, +0.50 GiB peak memory"
    assert "dense: 4.00 s sampling (4 steps of 1.000 s, 8 model calls)" in lines[-3]
    assert not any("nan" in line or "inf" in line for line in lines)


def test_report_of_identical_clips_and_missing_runs():
    clip = torch.rand(3, 12, 12, 3)
    lines = summary.summarize(compare(clip, clip), (12, 12), 0, [("dense", None)])
    assert "PSNR: every frame is identical" in lines
    assert "no run recorded" in lines[-1]
    assert lines[0] == "3 frames of 12 x 12"
    assert not any("inf" in line for line in lines)
