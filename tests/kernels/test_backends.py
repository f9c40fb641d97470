"""Which backend takes a call of block attention, and what happens when one breaks."""

from __future__ import annotations

import logging

import pytest
import torch
from interspatial.kernels import block_attend as module
from interspatial.kernels.attend_call import AttendCall
from interspatial.kernels.block_attend import backends, block_attend
from interspatial.kernels.dispatch import Backend, Dispatch

B, H = 2, 2


class Fake:
    """A backend that answers with a constant, refuses, or breaks."""

    def __init__(self, reason: str | None = None, error: BaseException | None = None) -> None:
        self.reason, self.error, self.calls = reason, error, 0

    def why_not(self, call: AttendCall) -> str | None:
        return self.reason

    def run(self, call: AttendCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return torch.full_like(call.q, 7), torch.full(call.q.shape[:3], 3.0) if call.return_lse else None


@pytest.fixture
def install(monkeypatch):
    """Puts a fake before the gather backend."""

    def put(fake: Fake) -> Fake:
        backend = Backend("fake", fake.why_not, fake.run)
        monkeypatch.setattr(module, "BACKENDS", Dispatch("Block attention", (backend, module.BACKENDS.backends[-1])))
        return fake

    return put


def test_the_last_backend_takes_every_call():
    assert module.BACKENDS.backends[-1].name == "gather"


def test_the_first_without_an_objection_is_taken(install, case):
    one = case(129)
    install(Fake())
    out, lse = block_attend(*one.qkv, one.plan, return_lse=True)
    assert (out == 7).all() and (lse == 3).all()
    assert (block_attend(*one.qkv, one.plan) == 7).all()
    fake = install(Fake("it is Sunday"))
    assert torch.equal(block_attend(*one.qkv, one.plan), block_attend(*one.qkv, one.plan, backend="gather"))
    assert fake.calls == 0


def test_the_list_of_reasons(install, case):
    one = case(129)
    install(Fake("it is Sunday"))
    assert backends(AttendCall(*one.qkv, one.plan, 0.1)) == {"fake": "it is Sunday", "gather": None}
    none = backends(AttendCall(*one.qkv, one.plan, 0.1, tail="rows"))
    assert none["fake"] == none["gather"] and "'rows'" in none["gather"]


def test_a_backend_may_be_asked_for_by_name(install, case):
    one = case(129)
    fake = install(Fake())
    assert (block_attend(*one.qkv, one.plan, backend="fake") == 7).all()
    assert block_attend(*one.qkv, one.plan, backend="gather").ne(7).any() and fake.calls == 1
    with pytest.raises(ValueError, match="no backend 'cuda'; there are fake, gather"):
        block_attend(*one.qkv, one.plan, backend="cuda")
    install(Fake("it is Sunday"))
    with pytest.raises(ValueError, match="fake backend of block attention cannot take this call: it is Sunday"):
        block_attend(*one.qkv, one.plan, backend="fake")


def test_a_backend_that_breaks_is_left_out_and_said_once(install, case, caplog):
    one, wide = case(129), case(129, dim=32)
    fake = install(Fake(error=RuntimeError("no such instruction\nat line 7")))
    want = block_attend(*one.qkv, one.plan, backend="gather")
    with caplog.at_level(logging.WARNING, "interspatial"):
        for _ in range(3):
            assert torch.equal(block_attend(*one.qkv, one.plan), want)
    assert fake.calls == 1 and len(caplog.records) == 1
    reason = backends(AttendCall(*one.qkv, one.plan, 0.1))["fake"]
    assert reason == "it failed before on cpu with torch.float32: RuntimeError: no such instruction"
    assert reason in caplog.text
    block_attend(*wide.qkv, wide.plan)  # another head dim is another kernel
    block_attend(*(x.bfloat16() for x in one.qkv), one.plan)
    assert fake.calls == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt()], ids=type)
def test_memory_and_interrupts_are_the_callers(error, install, case):
    one = case(129)
    fake = install(Fake(error=error))
    for _ in range(2):
        with pytest.raises(type(error)):
            block_attend(*one.qkv, one.plan)
    assert fake.calls == 2


def test_a_backend_that_was_asked_for_may_break(install, case):
    one = case(129)
    install(Fake(error=RuntimeError("no such instruction")))
    with pytest.raises(RuntimeError, match="no such instruction"):
        block_attend(*one.qkv, one.plan, backend="fake")
