"""The runner of the GPU bench on stages that fail, die and hang; its tables; its bars. No GPU, no ComfyUI."""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from pathlib import Path

import pytest

from bench.gpu import bars, machine, table
from bench.gpu.record import Record

runner = import_module("bench.gpu.__main__")
FAKES = [("fake_stages", name) for name in ("works", "stumbles", "missing", "looks", "fails", "dies", "hangs")]


def args(out: Path, *stages: str, seconds: float = 27.0) -> argparse.Namespace:
    return argparse.Namespace(out=out, stages=stages, seconds=seconds, smoke=True, device=None)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake stages are importable, ComfyUI and torch are not: a stage's process goes on without, and starts fast."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(tmp_path / "broken")]))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nothing"))


def test_every_ending_of_a_stage(fakes: None, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert not runner.bench(args(out), tuple(FAKES))
    content = json.loads((out / "results.json").read_text())
    found = content["stages"]
    ended = {name: stage["runs"][0]["ended"] for name, stage in found.items()}
    assert ended["works"] == ended["stumbles"] == "done"
    assert ended["missing"].startswith("failed: LookupError: fake_stages has no stage missing, but works, stumbles")
    assert ended["fails"] == "failed: RuntimeError: this card | has no engine"
    assert ended["dies"] == "died of SIGKILL"
    assert ended["hangs"].startswith("ended by force after ")
    assert found["works"]["rows"][2] == {**found["works"]["rows"][0], "setting": 2}
    assert found["works"]["rows"][0]["device"] == "cpu" and found["works"]["rows"][0]["smoke"] is True
    assert [row["setting"] for row in found["fails"]["rows"]] == ["before"]
    assert not alive(found["hangs"]["rows"][0]["child"])
    assert content["machines"] == [{"device": "cpu", "facts": "failed: ImportError: no torch here"}]
    assert found["looks"]["rows"] == [{"what": "row", "seen": 3}]
    log = (out / "log.txt").read_text()
    assert "No module named 'comfy'" in log and "in hangs" in log  # where it was, said before it was ended
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.json", "results.md"]
    page = (out / "results.md").read_text()
    assert "How it hangs." in page and "this card \\| has no engine" in page and "times below mean nothing" in page

    assert not runner.bench(args(out), tuple(FAKES[:4]))  # a second call
    again = json.loads((out / "results.json").read_text())["stages"]
    assert again["works"] == found["works"]
    assert [row["setting"] for row in again["stumbles"]["rows"]] == ["second", "first", "second"]
    runs = {name: len(stage["runs"]) for name, stage in again.items()}
    assert runs == {"works": 1, "stumbles": 2, "missing": 2, "looks": 1, "fails": 1, "dies": 1, "hangs": 1}


def alive(pid: int) -> bool:
    """Zombies are not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_nothing_begins_without_time(fakes: None, tmp_path: Path) -> None:
    assert not runner.bench(args(tmp_path, "works", seconds=0.0), tuple(FAKES))
    assert not (tmp_path / "log.txt").exists()
    assert "| works | not begun: no time was left |" in (tmp_path / "results.md").read_text()


def test_results_of_another_kind_are_not_mixed(tmp_path: Path) -> None:
    Record(tmp_path, "cpu", True).save()
    with pytest.raises(ValueError, match="give another --out"):
        Record(tmp_path, "cuda", False)
    Record(tmp_path, "cpu", True)


def test_unfinished_stages_come_first_then_failed_rows(tmp_path: Path) -> None:
    record = Record(tmp_path, "cpu", True)
    for name, ended, row in (("a", "done", {"failed": "why"}), ("b", "done", {}), ("c", "failed: x", {})):
        record.stage(name).update(rows=[row], runs=[{"ended": ended}])
    stages = tuple(("module", name) for name in "abcd")
    assert [name for _, name in runner.order(record, stages)] == ["c", "d", "a"]


def test_stages_are_listed_once() -> None:
    names = [name for _, name in runner.STAGES]
    assert len(set(names)) == len(names) and {"ceilings", "attention", "wan720"} <= set(names)


@pytest.mark.parametrize("value, text", [
    (None, ""), (True, "yes"), (3, "3"), (0.123456, "0.1235"), (12345.678, "12346"), (-1234.5, "-1234"),
    (2.5e12, "2.5e+12"),
    ([1.0, 3.0, 2.0], "1 to 3 (3)"), ([7.25], "7.25"), ([], ""), (["dense", "dense", "sparse"], "2 dense, sparse"),
    ("a|b\nc", "a\\|b c"), ("x" * 200, "x" * 157 + "..."), (float("nan"), "nan"),
])  # fmt: skip
def test_cells(value: object, text: str) -> None:
    assert table.cell(value) == text


def test_rows_of_a_kind_share_a_table_and_failures_are_rows() -> None:
    rows = [{"what": "copy", "tb": 4.25}, {"what": "step", "shape": "wan", "ms": 2.0}, {"what": "copy", "tb": 4.5},
            {"what": "step", "shape": "h3", "failed": "out of memory"}]  # fmt: skip
    assert table.rows(rows) == [
        "| what | tb |", "| --- | --- |", "| copy | 4.25 |", "| copy | 4.5 |", "",
        "| what | shape | ms |", "| --- | --- | --- |", "| step | wan | 2 |", "",
        "| what | shape | failed |", "| --- | --- | --- |", "| step | h3 | out of memory |",
    ]  # fmt: skip
    assert table.rows([]) == ["No rows."]


def test_clocks_of_a_stage() -> None:
    samples = [{"sm_mhz": 1980.0, "watts": 600.0}, {"sm_mhz": 1700.0}, {"sm_mhz": 1900.0, "watts": 700.0}, {}]
    assert machine.range_of(samples) == {"sm_mhz": [1700.0, 1900.0, 1980.0], "watts": [600.0, 650.0, 700.0]}


def test_facts_of_this_machine() -> None:
    import torch

    found = machine.facts("cpu")
    assert found["torch"] == torch.__version__ and found["device"] == "cpu"
    assert all(found[name] for name in ("python", "system", "cpu", "transformers", "numpy"))
    assert {"comfyui", "comfy-kitchen", "triton", "revision", "changed"} <= set(found)


def test_the_revision_is_what_the_bundle_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path / "pack")
    (tmp_path / "bundle.json").write_text(json.dumps({"revision": "abc", "changed": True, "python": "3.12"}))
    assert machine.revision() == {"revision": "abc", "changed": True}
    (tmp_path / "bundle.json").unlink()
    assert machine.revision() == {"revision": None, "changed": None}


def test_a_machine_without_a_card_has_no_clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.clocks() == {} and machine.card() == {}


def test_what_the_card_says_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "nvidia-smi"
    said.write_text("#!/bin/sh\necho '1980, 3201, [N/A], 41'\n")
    said.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine.clocks() == {"sm_mhz": 1980.0, "memory_mhz": 3201.0, "celsius": 41.0}


def content(*rows: dict, smoke: bool = False) -> dict:
    return {"smoke": smoke, "stages": {"one": {"rows": list(rows[:1])}, "two": {"rows": list(rows[1:])}}}


def row(what: str, setting: str, shape: str = "wan720", **figures: object) -> dict:
    return {"what": what, "shape": shape, "setting": setting, **figures}


ROWS = (
    row("draft double, all in", "density 0.2", ms=50.0, x_dense=3.4, error=0.02),
    row("draft double, all in", "density 0.1", ms=28.0, x_dense=6.5, error=0.05),
    row("draft double, all in", "density 0.2", shape="wan480", ms=5.0, x_dense=9.0, error=0.5),
    row("sol_attn", "density 0.2", ms=60.0, error=0.05),
    row("sol_attn", "density 0.1", failed="RuntimeError: no"),
    row("pairs, tail row", "density 0.2", ms=45.0, efficiency=0.8),
    row("blocks, tail row", "density 0.2", ms=45.0),
    row("flex 64", "density 0.2", ms=54.0),
    row("run", "sparse 0.3", "hunyuan720", speedup=2.4, preset_density=True),
    row("run", "sparse 0.2", "hunyuan720", speedup=3.4, preset_density=False),
    row("run", "sparse 0.3 + cache", "hunyuan720", speedup=4.9, preset_density=True),
    row("run", "w8a8 + sparse 0.3 + cache", "hunyuan720", speedup=7.0, preset_density=True),
    row("step", "dense", peak_gb=40.0), row("step", "sparse 0.2", peak_gb=41.0),
    row("overhead", "aside", share=0.02),
)  # fmt: skip
WANTED = {
    "Attention, Wan 720p, density 0.2": (3.4, "not met"),
    "The same at density 0.1": (6.5, "met"),
    "Efficiency of the kernel at density 0.2": (0.8, "met"),
    "Efficiency of the kernel at density 0.1": (None, "not measured"),
    "Speed over sol_attn, density 0.2": (1.2, "met"),
    "Speed over sol_attn, density 0.1": (None, "not measured"),
    "Error over that of sol_attn, density 0.2": (0.4, "met"),
    "Speed over FlexAttention": (1.2, "not met"),
    "HunyuanVideo 720p, 50 steps: sparse": (2.4, "met"),
    "HunyuanVideo 720p, 50 steps: sparse and cache": (4.9, "not met"),
    "Wan 720p, 50 steps: sparse": (None, "not measured"),
    "Peak memory of sparse over dense, Wan 720p": (1.025, "met"),
    "The pack's own overhead on a step, Wan 720p": (0.02, "not met"),
}


def test_bars() -> None:
    found = {bar.text: (figure, verdict) for bar, figure, verdict in bars.judged(content(*ROWS))}
    for text, (figure, verdict) in WANTED.items():
        name = text if text in found else next(each for each in found if each.startswith(text))
        assert found[name] == (pytest.approx(figure), verdict), name
    assert f"| {bars.BARS[0].text} | >= 3.5 | 3.4 | not met |" in bars.lines(content(*ROWS))
    assert bars.lines(content(*ROWS, smoke=True)) == ["Not judged: the sizes are tiny."]


def test_bars_of_nothing() -> None:
    assert {verdict for *_, verdict in bars.judged(content())} == {"not measured"}
