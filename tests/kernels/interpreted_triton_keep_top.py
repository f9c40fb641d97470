"""Triton's lists of kept columns against the reference, entry by entry.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels.block_plan import kept_lists
from interspatial.kernels.keep_top import BACKENDS, KeepCall, keep_top, keep_top_reference
from interspatial.kernels.list_map import list_map
from interspatial.kernels.triton_keep_top_kernel import bounds_kernel, lists_kernel
from interspatial.tests.kernels.test_keep_top import CASES, KINDS, forced_pairs, scores

pytestmark = [
    pytest.mark.usefixtures("poisoned", "interpreter"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # of infinities, by design
]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("forced", [False, True], ids=["free", "forced"])
@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_it_is_the_reference(case, forced, kind):
    video, columns, first, each, spare = case
    score, pairs = scores(kind, 2 if spare else 1, video, columns), forced_pairs(video, video) if forced else None
    want = keep_top_reference(score, each, spare, first=first, last=first + video, forced=pairs)
    got = keep_top(score, each, spare, first=first, last=first + video, forced=pairs, backend="triton")
    assert torch.equal(got[0], want[0])
    assert (got[1] is None) == (spare == 0)
    if spare:
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("kind", ["tied", "not finite"])
def test_rows_without_a_column_of_their_own(kind):
    score, pairs = scores(kind, 2, 5, 12), forced_pairs(5, 10)
    for forced in (None, pairs):
        given = {"first": 1, "last": 11, "forced": forced, "own": False}
        want, got = keep_top_reference(score, 4, 2, **given), keep_top(score, 4, 2, **given, backend="triton")
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_long_rows_and_scores_far_apart():
    """The first 3 rows of 2400: between the ends lie most integers that there are, so the halving goes far."""
    score = torch.randn(3, 2500, generator=torch.Generator().manual_seed(0)) ** 9
    score[1] *= 1e30
    score[2, 45:2000] = score[2, 45]
    for each in (1, 300, 2399):
        cols = torch.zeros(3, 100 + each, dtype=torch.int32)
        edge, level = torch.empty(2, 2, 3, dtype=torch.int32)
        counts, granted = torch.empty(3, dtype=torch.int32), torch.zeros(3, dtype=torch.uint8)
        given = {"score": score, "forced": score, "edge": edge, "level": level, "R": 2400, "V": 2400, "K": 2500,
                 "first": 40, "own": 40, "each": each - 1, "FORCED": False, "SIZE": 4096}  # fmt: skip
        bounds_kernel[(3,)](**given, worth=torch.empty(3))
        lists_kernel[(3,)](**given, granted=granted, cols=cols, counts=counts, C=cols.shape[1], extra=0)
        assert counts.tolist() == [100 + each] * 3
        for i in range(3):
            video = score[i, 40:2440].tolist()
            best = sorted(range(2400), key=lambda j, i=i, video=video: (j != i, -video[j], j))[:each]
            assert cols[i].tolist() == sorted([*range(40), *range(2440, 2500), *(40 + j for j in best)])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 33), (3, 2, 64), (1, 3, 2100)], ids=str)
def test_lists_of_a_map(shape):
    draw = torch.Generator().manual_seed(0)
    for chance in (0.0, 0.3, 1.1):
        keep = torch.rand(shape, generator=draw) < chance
        for width in (None, 4):
            cols, counts = list_map(keep, width, backend="triton")
            want = kept_lists(keep, width)
            assert torch.equal(counts, want[1])
            past = torch.arange(cols.shape[-1]) >= counts[..., None]
            assert torch.equal(cols.masked_fill(past, 0), want[0].masked_fill(past, 0))


def test_it_is_the_first_choice():
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    assert BACKENDS.reasons(KeepCall(torch.zeros(1, 4, 4), 2)) == {"triton": None, "torch": None}
    assert "columns" in BACKENDS.reasons(KeepCall(torch.zeros(1, 1, 1 << 15), 1))["triton"]
