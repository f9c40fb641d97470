"""The error of pooling: what is refused, and the Triton backend outside of its kernel: it compiles for cards that are
not here, once whatever the lengths. What it computes: interpreted_triton_pooling_error.py and test_svg2.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels import triton_pooling_error
from interspatial.kernels.pooling_error import BACKENDS, ErrorCall, KeyBlocks, pooling_error
from interspatial.kernels.triton_pooling_error import SPAN
from interspatial.tests.kernels.conftest import Launch, Recorder
from interspatial.tests.no_waits import no_waits

AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
SHARED = {AMPERE: 166912, HOPPER: 232448, CDNA: 65536}  # bytes of shared memory that one program may have


def empty(tokens: int, count: int, dim: int, *, size=32, heads=2, batch=1, dtype=torch.bfloat16, device="meta"):
    """A call on the first half of the heads. tokens: as many as slots"""
    k, v = (torch.zeros(batch, tokens, heads, dim, dtype=dtype, device=device) for _ in "kv")
    every, blocks = batch * heads, -(-tokens // size)
    slots = torch.zeros(every, blocks, size, dtype=torch.int32, device=device)
    mean, value = (torch.zeros(every, blocks, dim, device=device) for _ in "kv")
    keys = KeyBlocks(k, v, slots, mean, value, torch.zeros(1, blocks, size, device=device))
    return ErrorCall(torch.zeros(every // 2, count, dim, device=device), keys, 0, 0.1)


@pytest.fixture
def error_launch(monkeypatch) -> Callable[..., Launch]:
    """What the Triton backend launches for a call; nothing runs."""
    pytest.importorskip("triton")
    from interspatial.kernels import triton_attend_kernel, triton_pooling_error_kernel

    if triton_attend_kernel.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set, so there are no kernels to compile")
    seen: list[Launch] = []
    recorder = Recorder(triton_pooling_error_kernel.error_kernel, seen)
    monkeypatch.setattr(triton_pooling_error, "_kernels", lambda: SimpleNamespace(error_kernel=recorder))

    def record(call: ErrorCall) -> Launch:
        found = triton_pooling_error.errors(call)
        assert found.shape == (*call.query.shape[:2], call.keys.slots.shape[1])
        return seen.pop()

    return record


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return pytest.importorskip("triton.backends.compiler").GPUTarget


@pytest.mark.parametrize(
    ("card", "dtype", "dim"),
    [
        (AMPERE, torch.bfloat16, 64),
        (HOPPER, torch.bfloat16, 128),
        (HOPPER, torch.float16, 128),
        (CDNA, torch.bfloat16, 64),
    ],
    ids=str,
)
def test_it_compiles_and_fits(card, dtype, dim, error_launch, target):
    made = error_launch(empty(1000, 70, dim, dtype=dtype))
    tile = made.arguments["M"]
    assert made.grid == (-(-70 // tile) * -(-32 // SPAN),)
    found = made.compiled(target(*card))
    assert 0 < found.metadata.shared <= SHARED[card]
    assert found.asm["hsaco" if card == CDNA else "cubin"]
    if card == HOPPER:
        assert ("wgmma" in found.asm["ptx"]) == (dtype == torch.bfloat16)
        pointer = r"tt.addptr .* : (?:tensor<)?(\S*!tt.ptr<\w+>)>?, (?:tensor<)?(\S+?)>?\s"
        offsets = re.findall(pointer, found.asm["ttir"])
        assert all(kind.endswith("i64") for at, kind in offsets if at.startswith("!"))  # of heads
        assert sum(kind == "32x1xi64" for _, kind in offsets) >= 2  # of key and value tokens


@pytest.mark.parametrize("card", [HOPPER, CDNA], ids=str)
def test_no_length_compiles_anything_anew(card, error_launch, target):
    """Numbers of 1 and multiples of 16 are what Triton would otherwise make variants of."""
    calls = [
        empty(64, 16, 64),
        empty(1, 1, 64, heads=3, batch=2),
        empty(75_600, 295, 64, heads=40),
        empty(1000, 17, 64, size=30),
    ]
    kinds = [error_launch(call).compile_time(target(*card))[1:] for call in calls]
    assert all(one == other for one, other in pairwise(kinds))


def test_a_device_is_never_waited_for(error_launch):
    call = empty(1000, 70, 64)
    with no_waits():
        error_launch(call)
        assert pooling_error(call.query, call.keys, 0, 0.1).device.type == "meta"


def test_reasons(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    call = empty(64, 5, 16, device="cpu")
    assert "TRITON_INTERPRET=1" in BACKENDS.reasons(call)["triton"] and BACKENDS.reasons(call)["torch"] is None
    assert "head dim is 20" in triton_pooling_error.why_not(empty(64, 5, 20))
    assert "65 slots" in triton_pooling_error.why_not(empty(64, 5, 16, size=65))
    assert "float64" in triton_pooling_error.why_not(empty(64, 5, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: (c.query.double(), c.keys, 0), r"float64 \[1, 5, 16\]; they must be float32"),
        (lambda c: (c.query[..., :8], c.keys, 0), r"\[1, 5, 8\]; they must be float32 \[R, C, D\]"),
        (lambda c: (c.query, c.keys, 2), "heads 2 to 2 are asked for; there are 2"),
    ],
)
def test_what_is_refused(change, says):
    call = empty(64, 5, 16, device="cpu")
    with pytest.raises(ValueError, match=says):
        pooling_error(*change(call), 0.1)
