"""Tiles of earlier sessions and of the table that ships, and what the tuner makes of them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels.triton_tiles import ONLY, REMEMBERED, SHIPPED, TIMED, Tile, Tuner
from interspatial.kernels.tuned_tiles import SHIPPED_FILE, Card, TunedTiles, _read, among, entry, in_words, word

CARD = Card("NVIDIA H200", "NVIDIA H200, 9.0, torch 2.11.0, triton 3.6.0")
LIKELY, FAST, BROKEN = Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 64, 8, 3)
OFFERED = [LIKELY, FAST, BROKEN]
KEY = torch.device("cuda", 0), torch.bfloat16, 128, "row", 64, 64
KIND = "attend bf16 128 row 64 64"


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(Card, "of", lambda device: CARD)


@pytest.fixture
def files(tmp_path):
    """The table that ships and the user's file, not yet there."""
    return SimpleNamespace(shipped=tmp_path / "shipped.json", user=tmp_path / "user" / "tiles.json")


def tuner_of(files, launched=None, name="attend"):
    """A tuner of a new process; FAST is fastest."""
    seen = [] if launched is None else launched

    def clock(launch):
        launch()
        return {LIKELY: 2.0, FAST: 1.0}[seen[-1]]

    def launch(tile):
        seen.append(tile)
        if tile == BROKEN:
            raise RuntimeError("out of resource: shared memory")

    tuner = Tuner(name, clock, TunedTiles(files.shipped, files.user))
    return tuner, lambda offered=OFFERED: tuner.choose(KEY, offered, launch)


def test_what_was_timed_is_known_in_the_next_process(card, files):
    tuner, choose = tuner_of(files)
    assert choose() == FAST
    (choice,) = tuner.chosen[KEY]
    assert choice.source == TIMED and choice.times == {LIKELY: 2.0, FAST: 1.0}
    assert json.loads(files.user.read_text())[CARD.build][KIND]["milliseconds"][in_words(FAST)] == 1.0
    tuner, choose = tuner_of(files, launched := [])
    assert choose() == FAST and tuner.chosen[KEY][-1].source == REMEMBERED
    assert launched == [FAST], "one launch, which compiles, and no timing"
    assert choose() == FAST and launched == [FAST]


@pytest.mark.parametrize("change", ["M", "card", "name"])
def test_what_is_not_offered_or_of_another_kind_is_not_chosen(change, card, files, monkeypatch):
    tuner_of(files)[1]()
    tuner, choose = tuner_of(files, name="mass" if change == "name" else "attend")
    offered = [replace(tile, M=32) for tile in (LIKELY,)] + [LIKELY] if change == "M" else OFFERED
    if change == "M":
        tuner.clock = lambda launch: 1.0
    if change == "card":
        monkeypatch.setattr(Card, "of", lambda device: replace(CARD, build="NVIDIA H200, 9.0, torch 3, triton 4"))
    assert choose(offered) in offered and tuner.chosen[KEY][-1].source == TIMED


def test_the_table_that_ships_comes_second(card, files):
    files.shipped.write_text(json.dumps({CARD.name: {KIND: entry(LIKELY, {LIKELY: 1.0})}}))
    tuner, choose = tuner_of(files)
    assert choose() == LIKELY and tuner.chosen[KEY][-1].source == SHIPPED
    assert not files.user.exists(), "nothing was measured here"
    TunedTiles(files.shipped, files.user).remember(CARD, KIND, entry(FAST, {FAST: 1.0}))
    tuner, choose = tuner_of(files)
    assert choose() == FAST and tuner.chosen[KEY][-1].source == REMEMBERED


def test_a_tile_that_no_longer_runs_is_timed_anew(card, files):
    files.shipped.write_text(json.dumps({CARD.name: {KIND: entry(BROKEN, {BROKEN: 1.0})}}))
    tuner, choose = tuner_of(files)
    assert choose() == FAST and tuner.chosen[KEY][-1].source == TIMED


def test_a_device_without_memory_is_no_verdict(card, files):
    TunedTiles(files.shipped, files.user).remember(CARD, KIND, entry(FAST, {FAST: 1.0}))
    tuner, _ = tuner_of(files)

    def full(tile):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        tuner.choose(KEY, OFFERED, full)
    assert KEY not in tuner.chosen


@pytest.mark.parametrize("text", ["{", "[]", '{"card": 3}', "\x00"])
def test_a_broken_file_is_said_once_and_written_anew(text, card, files, caplog):
    files.user.parent.mkdir()
    files.user.write_text(text)
    with caplog.at_level(logging.WARNING, "interspatial"):
        known = TunedTiles(files.shipped, files.user)
        assert [known.remembered(CARD, kind) for kind in "ab"] == [None, None]
    assert len(caplog.records) == 1
    known.remember(CARD, KIND, entry(FAST, {FAST: 1.0}))
    assert among(TunedTiles(files.shipped, files.user).remembered(CARD, KIND), OFFERED) == FAST
    assert [path.name for path in files.user.parent.iterdir()] == [files.user.name], "nothing lies beside it"


@pytest.mark.parametrize("found", [None, 3, {}, {"tile": 3}, {"tile": {"M": 64}}, {"tile": [1]}])
def test_an_entry_that_is_none_names_no_tile(found, card, files):
    assert among(found, OFFERED) is None
    files.user.parent.mkdir()
    files.user.write_text(json.dumps({CARD.build: {KIND: found}}))
    assert tuner_of(files)[1]() == FAST


def test_two_processes_keep_each_others_entries(files):
    one, other = (TunedTiles(files.shipped, files.user) for _ in range(2))
    assert one.remembered(CARD, "a") is None and other.remembered(CARD, "b") is None
    one.remember(CARD, "a", entry(FAST, {}))
    other.remember(CARD, "b", entry(LIKELY, {}))
    found = TunedTiles(files.shipped, files.user)
    assert among(found.remembered(CARD, "a"), OFFERED) == FAST
    assert among(found.remembered(CARD, "b"), OFFERED) == LIKELY


def test_a_folder_that_cannot_be_written_ends_nothing(files, caplog):
    files.user.parent.write_text("a file where the folder should be")
    known = TunedTiles(files.shipped, files.user)
    with caplog.at_level(logging.WARNING, "interspatial"):
        known.remember(CARD, KIND, entry(FAST, {}))
        known.remember(CARD, KIND, entry(FAST, {}))
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_without_a_file_or_a_name_nothing_is_remembered(card, files):
    known = TunedTiles(files.shipped)
    known.remember(CARD, KIND, entry(FAST, {}))
    assert known.remembered(CARD, KIND) is None
    known.remember_in(files.user)
    assert known.remembered(CARD, KIND) is None and not files.user.parent.exists(), "naming a file makes none"
    tuner_of(files, name="")[1]()
    assert not files.user.exists()


def test_calls_of_a_kind_may_be_offered_other_tiles(card, files):
    _, choose = tuner_of(files, launched := [])
    assert choose() == FAST and choose([LIKELY, BROKEN]) == LIKELY
    launched.clear()
    assert choose() == FAST and choose([LIKELY, BROKEN]) == LIKELY and choose([FAST, LIKELY]) == FAST
    assert not launched, "both are known"


def test_one_tile_is_neither_timed_nor_looked_up(files, monkeypatch):
    monkeypatch.setattr(Card, "of", lambda device: pytest.fail("no card is asked for"))
    tuner, choose = tuner_of(files)
    assert choose([FAST]) == FAST and tuner.chosen[KEY][-1].source == ONLY


def test_words():
    assert Tuner("attend").kind(KEY) == KIND
    assert [*map(word, ((5120, 1536), None, True, torch.float16))] == ["5120x1536", "none", "True", "fp16"]
    assert in_words(Tile(64, 32, 4, 2)) == "M 64, N 32, warps 4, stages 2"
    assert in_words(Tile(64, 32, 4, 2, split=True)) == "M 64, N 32, warps 4, stages 2, split"


def test_the_table_that_ships_is_one(caplog):
    """Each entry names a card, a kind by the words of a tuner, and the fastest of the tiles that it has times of."""
    with caplog.at_level(logging.WARNING, "interspatial"):
        table = _read(SHIPPED_FILE)
    assert SHIPPED_FILE.exists() and not caplog.records
    for kinds in table.values():
        for kind, found in kinds.items():
            assert len(kind.split()) > 1
            fastest = min(found["milliseconds"], key=found["milliseconds"].get)
            assert f"M {found['tile']['M']}, N {found['tile']['N']}, " in fastest
