"""The check of waits finds each kind of wait, and lets pass what needs none."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from interspatial.tests.no_waits import no_waits

X = torch.empty(5, 7, device="meta")
HOST = torch.arange(3)

WAITS = {
    "item": lambda: X.sum().item(),
    "bool": lambda: bool(X.any()),
    "list": lambda: X.tolist(),
    "equal": lambda: torch.equal(X, X),
    "close": lambda: torch.allclose(X, X),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 0),
    "mask": lambda: X[X > 0],
    "mask put": lambda: X.index_put_((X > 0,), torch.empty(9, device="meta")),
    "selected": lambda: X.masked_select(X > 0),
    "unique": lambda: X.unique(),
    "counts": lambda: X.long().flatten().bincount(),
    "repeats": lambda: torch.repeat_interleave(X[0], X[0].long()),
    "to the host": lambda: X.cpu(),
    "written to the host": lambda: torch.empty(5, 7).copy_(X),
}
UPLOADS = {
    "to": lambda: HOST.to("meta"),
    "index": lambda: X[HOST],
    "list as an index": lambda: X[[0, 2]],
    "copy": lambda: X.copy_(torch.ones(5, 7)),
    "tensor": lambda: torch.tensor([1, 2], device="meta"),
}
FREE = {
    "arithmetic": lambda: (X @ X.T).softmax(-1).argsort(-1),
    "index": lambda: X[torch.zeros(3, dtype=torch.int64, device="meta"), 2:],
    "masked": lambda: X.masked_fill(X > 0, 1).where(X > 1, 0),
    "made there": lambda: torch.arange(9, device="meta").repeat_interleave(3),
    "repeats": lambda: torch.repeat_interleave(X[0], X[0].long(), output_size=40),
    "on the host": lambda: HOST[HOST > 1].tolist(),
    "precision": lambda: X.bfloat16().to("meta"),
}


@pytest.mark.parametrize("run", WAITS.values(), ids=WAITS)
def test_a_wait_is_found_and_named(run):
    for uploads in (False, True):
        with pytest.raises(AssertionError, match=r"tests/test_no_waits.py:\d+: "), no_waits(uploads=uploads):
            run()


@pytest.mark.parametrize("run", UPLOADS.values(), ids=UPLOADS)
def test_a_copy_from_the_host_is_one_unless_it_may_be(run):
    with pytest.raises(AssertionError, match="from the host"), no_waits():
        run()
    with no_waits(uploads=True):
        run()


@pytest.mark.parametrize("run", FREE.values(), ids=FREE)
def test_what_needs_no_wait_passes(run):
    with no_waits():
        run()


def test_a_wait_is_found_where_its_error_was_caught():
    with pytest.raises(AssertionError, match="reads a value"), no_waits(), suppress(RuntimeError):
        X.sum().item()


def test_other_errors_stay_what_they_are():
    with pytest.raises(ValueError, match="mine"), no_waits():
        raise ValueError("mine")
