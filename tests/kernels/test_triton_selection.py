"""The Triton kernels of pooling and selection compile for cards that are not here, once whatever the lengths."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels import triton_device, triton_keep_top, triton_pool
from interspatial.kernels.keep_top import KeepCall
from interspatial.kernels.list_map import ListCall
from interspatial.kernels.pool_blocks import PoolCall
from interspatial.tests.kernels.conftest import Launch, Recorder

AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
CARDS = pytest.mark.parametrize("card", [AMPERE, HOPPER, CDNA], ids=str)
BF16 = torch.bfloat16


@pytest.fixture
def target():
    return pytest.importorskip("triton.backends.compiler").GPUTarget


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Launch]]:
    """What `run` would launch; nothing runs, so a call may be on the meta device."""
    pytest.importorskip("triton")
    if triton_device.found()[0]:
        pytest.skip("TRITON_INTERPRET is set, so there are no kernels to compile")
    seen: list[Launch] = []

    for module in (triton_pool, triton_keep_top):
        made = module._kernels()
        recorders = {name: Recorder(getattr(made, name), seen) for name in dir(made) if name.endswith("_kernel")}
        monkeypatch.setattr(module, "_kernels", lambda recorders=recorders: SimpleNamespace(**recorders))

    def record(run: Callable[[object], object], call: object) -> list[Launch]:
        seen.clear()
        run(call)
        return list(seen)

    return record


def pool_call(tokens=70, blocks=3, size=64, heads=2, dim=128, dtype=BF16, device="cpu", **more) -> PoolCall:
    x = torch.zeros(1, tokens, heads, dim, dtype=dtype, device=device)
    slots = torch.zeros(1, blocks, size, dtype=torch.int32, device=device)
    bias = torch.zeros(1, tokens, device=device) if more.pop("biased", False) else None
    return PoolCall(x, slots, bias, **more)


def keep_call(heads=2, video=5, columns=7, each=2, spare=0, forced=False, device="cpu") -> KeepCall:
    pairs = torch.zeros(video, video, dtype=torch.bool, device=device) if forced else None
    return KeepCall(torch.zeros(heads, video, columns, device=device), each, spare, 1, 1 + video, pairs)


@CARDS
@pytest.mark.parametrize("kind", ["bfloat16", "float32, squares"])
def test_pooling_compiles(card, kind, launched, target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    half = pool_call(), pool_call(dim=256, dtype=torch.float32, biased=True, squares=True)
    (launch,) = launched(triton_pool.pooled, half[kind != "bfloat16"])
    assert launch.compiled(target(*card)).asm["hsaco" if card == CDNA else "cubin"]


@CARDS
@pytest.mark.parametrize("columns", [1260, 4096])
def test_selection_compiles(card, columns, launched, target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = launched(triton_keep_top.keep, keep_call(columns=columns, spare=2, forced=True))
    made += launched(triton_keep_top.listed, ListCall(torch.zeros(2, 3, columns, dtype=torch.bool)))
    assert [launch.kernel.__name__ for launch in made] == ["bounds_kernel", "lists_kernel", "map_kernel"]
    for launch in made:
        assert launch.compiled(target(*card)).asm["hsaco" if card == CDNA else "cubin"]


@CARDS
def test_no_length_compiles_anything_anew(card, launched, target):
    """Odd and even lengths, numbers of 1 and of multiples of 16: what Triton would otherwise make variants of."""
    kinds = []
    for tokens, video, columns, heads, each in ((65, 33, 65, 1, 1), (1000, 96, 127, 4, 16), (1024, 112, 128, 16, 32)):
        made = launched(triton_pool.pooled, pool_call(tokens, columns, 64, heads))
        made += launched(triton_keep_top.keep, keep_call(heads, video, columns, each, each % 2))
        made += launched(triton_keep_top.listed, ListCall(torch.zeros(heads, video, columns, dtype=torch.bool), each))
        kinds.append([(launch.kernel.__name__, launch.compile_time(target(*card))[1:]) for launch in made])
    assert len(kinds[0]) == 4
    assert all(one == other for one, other in pairwise(kinds))


def test_a_device_is_never_waited_for(launched):
    """On the meta device every read of a value raises."""
    (pool,) = launched(triton_pool.pooled, pool_call(300, 5, heads=3, device="meta", biased=True, squares=True))
    assert pool.grid == (15,)
    bounds, lists = launched(triton_keep_top.keep, keep_call(2, 30, 40, 4, 7, forced=True, device="meta"))
    assert bounds.grid == lists.grid == (60,)
    assert lists.arguments["C"] == 15 and lists.arguments["SIZE"] == 2048


def test_rows_have_a_warp_for_every_2048_columns():
    for columns, size, warps in ((3, 2048, 1), (1260, 2048, 1), (2049, 4096, 2), (16384, 16384, 8)):
        assert triton_keep_top._size(columns) == {"SIZE": size, "num_warps": warps}


def test_reasons_are_those_of_the_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for module, call in ((triton_pool, pool_call()), (triton_keep_top, keep_call())):
        assert "TRITON_INTERPRET=1" in module.why_not(call)
