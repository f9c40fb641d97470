"""The stage that times tiles: it runs at sizes of a CPU, and what it finds goes into the table that ships."""

from __future__ import annotations

import json

import torch
from interspatial.kernels import triton_attend
from interspatial.kernels.triton_tiles import TIMED, Choice, Tile, Tuner
from interspatial.kernels.tuned_tiles import TunedTiles, among

from bench.gpu import tuned
from bench.gpu.stage import Bench

FAST, SLOW = Tile(64, 64, 4, 3), Tile(64, 32, 4, 2)


def test_every_part_runs(tmp_path, monkeypatch):
    """On a CPU nothing has a choice of tiles, so the only rows are those that say a part ran."""
    monkeypatch.setattr(tuned, "tuners", list)
    bench = Bench.of(tmp_path / "tuned.rows.json", "cpu", True, 60)
    tuned.run(bench)
    assert not [row for row in bench.rows if "failed" in row]
    assert len(bench.rows) == len(tuned.ATTENTION) + len(tuned.SMALL_LAYERS)
    before = list(bench.rows)
    tuned.run(bench)
    assert bench.rows == before, "a second call does nothing again"


def test_what_was_timed_becomes_the_table_that_ships(tmp_path, monkeypatch):
    tuner = Tuner("attend")
    monkeypatch.setattr(triton_attend, "TUNER", tuner)

    def part(*given):
        def run() -> None:
            tuner.chosen[torch.device("cpu"), 128, "row"] = [Choice(FAST, TIMED, {SLOW: 2.0, FAST: 1.0})]

        return [tuned.Task("sparse", run)]

    monkeypatch.setattr(tuned, "attention", part)
    bench = Bench.of(tmp_path / "tuned.rows.json", "cpu", True, 60)
    tuned.run(bench)
    old = {"cpu": {"attend 128 row": {"tile": {}, "milliseconds": {}}, "mass": {"tile": {"M": 1}}}}
    table = tuned.merged(old, bench.rows)
    assert [*table["cpu"]] == ["attend 128 row", "mass"]
    (tmp_path / "shipped.json").write_text(json.dumps(table))
    card = type("card", (), {"name": "cpu"})
    assert among(TunedTiles(tmp_path / "shipped.json").shipped(card, "attend 128 row"), [SLOW, FAST]) == FAST
    assert table["cpu"]["attend 128 row"]["milliseconds"]["M 64, N 64, warps 4, stages 3"] == 1.0
