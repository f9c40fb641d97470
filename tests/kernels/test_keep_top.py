"""The columns that rows keep: the rules one by one, equal scores, what is not finite, and both ways in torch."""

from __future__ import annotations

import math

import pytest
import torch
from interspatial.kernels.block_plan import kept_lists
from interspatial.kernels.keep_top import BACKENDS, KeepCall, keep_top, keep_top_reference
from interspatial.kernels.list_map import list_map

pytestmark = pytest.mark.usefixtures("poisoned")

KINDS = ("normal", "tied", "all equal", "removed", "not finite")
# rows, columns, first video column, each, spare
CASES = [(1, 4, 2, 1, 0), (5, 5, 0, 1, 0), (7, 12, 2, 3, 4), (11, 11, 0, 7, 10), (13, 20, 7, 12, 1), (9, 9, 0, 1, 9)]


def scores(kind: str, heads: int, video: int, columns: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(video)
    score = torch.randn(heads, video, columns, generator=draw) * 3
    if kind == "tied":
        score = (score / 3).round()
    if kind == "all equal":
        score = torch.full_like(score, -0.0)
        score[:, ::2] = 0.0
    if kind == "removed":
        score[..., torch.rand(columns, generator=draw) < 0.7] = -torch.inf
    if kind == "not finite":
        for value in (torch.nan, torch.inf, -torch.inf):
            score[torch.rand(score.shape, generator=draw) < 0.2] = value
        score[0] = torch.nan
    return score


def forced_pairs(rows: int, video: int) -> torch.Tensor:
    """More than fits into a row, a few, none."""
    forced = torch.zeros(rows, video, dtype=torch.bool)
    forced[0] = True
    forced[rows // 2, ::3] = True
    return forced


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forced", [False, True], ids=["free", "forced"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_is_the_reference(case, forced, kind):
    video, columns, first, each, spare = case
    score, pairs = scores(kind, 3, video, columns), forced_pairs(video, video) if forced else None
    want = keep_top_reference(score, each, spare, first=first, last=first + video, forced=pairs)
    got = keep_top(score, each, spare, first=first, last=first + video, forced=pairs, backend="torch")
    assert torch.equal(got[0], want[0])
    assert (got[1] is None) == (want[1] is None) == (spare == 0)
    if spare:
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [(1, 9, 2, 7, 1, 0), (5, 12, 1, 11, 4, 2), (8, 5, 0, 5, 2, 8)], ids=str)
def test_rows_without_a_column_of_their_own(case, kind):
    rows, columns, first, last, each, spare = case
    score, pairs = scores(kind, 3, rows, columns), forced_pairs(rows, last - first)
    for forced in (None, pairs):
        given = {"first": first, "last": last, "forced": forced, "own": False}
        want, got = keep_top_reference(score, each, spare, **given), keep_top(score, each, spare, **given)
        assert torch.equal(got[0], want[0])
        assert not spare or torch.equal(got[1], want[1])


def test_the_rules_on_a_row_that_is_read_by_eye():
    """Rows 1 .. 4 of 6 columns, of which the first and the last are not video."""
    score = torch.tensor([[[9.0, 0, 1, 2, 3, 9], [9, 5, 0, 5, 5, 9], [9, 1, 2, 0, 3, 9], [9, 4, 3, 2, 1, 9]]])
    cols, counts = keep_top(score, 2, first=1, last=5)
    assert counts is None
    assert cols.tolist() == [[[0, 1, 4, 5], [0, 1, 2, 5], [0, 3, 4, 5], [0, 1, 4, 5]]]
    cols, counts = keep_top(score, 2, 1, first=1, last=5)  # of the rows, the second loses most without one more
    assert counts.tolist() == [[4, 5, 4, 4]]
    assert cols.tolist() == [[[0, 1, 4, 5, 6], [0, 1, 2, 3, 5], [0, 3, 4, 5, 6], [0, 1, 4, 5, 6]]]
    forced = torch.zeros(4, 4, dtype=torch.bool)
    forced[0, 1] = forced[2, 0] = forced[2, 1] = True
    cols, counts = keep_top(score, 2, 1, first=1, last=5, forced=forced)  # the third row's next best is forced
    assert counts.tolist() == [[4, 4, 5, 4]]
    assert cols.tolist() == [[[0, 1, 2, 5, 6], [0, 1, 2, 5, 6], [0, 1, 2, 3, 5], [0, 1, 4, 5, 6]]]


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_sound_whatever_comes(kind):
    score = scores(kind, 2, 30, 37)
    cols, counts = keep_top(score, 6, 11, first=4, last=34)
    assert (cols[..., 1:] > cols[..., :-1]).all() and (cols[..., :-1] < 37).all()
    assert counts.sum(1).tolist() == [30 * 13 + 11] * 2
    assert ((cols == 37) == (torch.arange(14) >= counts[..., None])).all()
    own = torch.arange(4, 34, dtype=torch.int32)[:, None]
    assert (cols == own).any(-1).all()


def test_a_device_is_never_waited_for():
    """On the meta device every read of a value raises."""
    score, forced = torch.empty(2, 9, 12, device="meta"), torch.empty(9, 9, dtype=torch.bool, device="meta")
    cols, counts = keep_top(score, 3, 2, first=1, last=10, forced=forced)
    assert (cols.shape, counts.shape) == ((2, 9, 7), (2, 9))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": torch.zeros(1, 4, 6, dtype=torch.float64)}, "float64"),
        ({"first": 3, "last": 7}, "4 video columns from 3 on"),
        ({"last": 4}, "4 rows and 3 video columns"),
        ({"each": 0}, "0 columns in each of 4 rows"),
        ({"each": 4, "spare": 1}, "4 columns in each of 4 rows and 1 more"),
        ({"forced": torch.zeros(6, 6, dtype=torch.bool)}, r"bool \[6, 6\]; it must be bool \[4, 4\]"),
    ],
)
def test_what_it_refuses(change, said):
    given = {"score": torch.zeros(1, 4, 6), "each": 2, "first": 1, "last": 5} | change
    with pytest.raises(ValueError, match=said):
        BACKENDS.run(KeepCall(**given))


def test_lists_of_a_map():
    keep = torch.rand(2, 5, 33, generator=torch.Generator().manual_seed(0)) < 0.3
    for width in (None, 4):
        for got, want in zip(list_map(keep, width, backend="torch"), kept_lists(keep, width), strict=True):
            assert torch.equal(got, want)
    with pytest.raises(ValueError, match="bool"):
        list_map(keep.int())


def test_share_of_the_softmax_is_of_all_columns():
    """Equal scores within the video: a column that is not video takes mass away, and so decides who gets one more."""
    score = torch.zeros(1, 3, 4)
    score[0, :, 0] = torch.tensor([math.log(5), 0.0, math.log(2)])
    _, counts = keep_top(score, 1, 2, first=1, last=4)
    assert counts.tolist() == [[2, 3, 3]]
