"""The Triton kernels compile for cards that are not here, fit them, and are compiled once whatever the lengths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from interspatial.kernels.attend_call import AttendCall, Reshape
from interspatial.kernels.triton_tiles import Device, Tile, laid_out

B, H = 2, 2
AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
DEVICES = {AMPERE: Device("mma", 166912), HOPPER: Device("wgmma", 232448), CDNA: Device("amd", 65536)}
GATHERED = Tile(64, 64, 4, 2)
LAID_OUT = [tile for slots in (64, 128) for tile in laid_out(2, 128, slots, 64, DEVICES[HOPPER])]
CLUSTERS = laid_out(2, 128, 64, 32, DEVICES[HOPPER])  # key blocks of 32, as svg2 has them


@pytest.fixture
def target():
    return pytest.importorskip("triton.backends.compiler").GPUTarget


@pytest.mark.parametrize(
    ("card", "dtype", "dim", "tail"),
    [
        (AMPERE, torch.bfloat16, 128, "row"),
        (HOPPER, torch.float16, 96, "block"),
        (CDNA, torch.bfloat16, 64, None),
    ],
    ids=str,
)
def test_it_compiles_and_fits(card, dtype, dim, tail, case, launches, target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    one = case(130, dim=dim, dtype=dtype)
    reshape = None if tail else Reshape(torch.rand(B, 130, H), one.qkv[0])
    call = AttendCall(*one.qkv, one.plan, 0.1, one.bias, tail, reshape, return_lse=True)
    made = launches(call, DEVICES[card], GATHERED)
    assert {launch.kernel.__name__ for launch in made} >= {"attend_kernel", *(["words_kernel"] if tail else [])}
    for launch in made:
        found = launch.compiled(target(*card))
        assert 0 < found.metadata.shared <= DEVICES[card].shared
        assert found.asm["hsaco" if card == CDNA else "cubin"]


@pytest.mark.parametrize("tile", [*LAID_OUT, *CLUSTERS], ids=str)
@pytest.mark.parametrize("tail", [None, "row"])
def test_laid_out_tiles_compile_for_hopper_and_fit(tile, tail, case, launches, target, tmp_path, monkeypatch):
    """The loop keeps its numbers in registers, takes boxes from the copy engine and hands them to the matrix units."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    one = case(300, "after", dim=128, dtype=torch.bfloat16, size=32 if tile in CLUSTERS else 64)
    made = launches(AttendCall(*one.qkv, one.plan, 0.1, one.bias, tail), DEVICES[HOPPER], tile)
    names = ["lay_out_kernel", "lay_out_kernel", "ordered_kernel"]
    assert [launch.kernel.__name__ for launch in made] == [*(["words_kernel"] if tail else []), *names]
    found = made[-1].compiled(target(*HOPPER))
    assert found.metadata.shared <= tile.shared(2, 128, DEVICES[HOPPER]) <= DEVICES[HOPPER].shared
    assert "wgmma" in found.asm["ptx"] and "cp.async.bulk.tensor" in found.asm["ptx"]
    if tile.registers:
        assert f".maxnreg {tile.registers}" in found.asm["ptx"]
        assert 2 * found.metadata.shared <= DEVICES[HOPPER].shared  # which is what the limit is for


@pytest.mark.parametrize("card", DEVICES, ids=str)
@pytest.mark.parametrize("tail", [None, "row", "block"])
@pytest.mark.parametrize("tile", [GATHERED, LAID_OUT[0]], ids=["gathered", "laid out"])
def test_no_length_compiles_anything_anew(tile, tail, card, case, launches, target):
    """Odd and even lengths, numbers of 1 and of multiples of 16: what Triton would otherwise make variants of."""
    kinds = []
    for tokens, batch, copies in ((64, 2, 1), (65, 1, 1), (1000, 2, 8), (1024, 1, 1)):
        one = case(tokens, size=64, dim=64, dtype=torch.bfloat16)
        q, k, v = (x[:batch].repeat(1, 1, copies, 1) for x in one.qkv)
        plan = one.plan
        per_head = (plan.cols[:1], plan.counts[:1])
        plan = type(plan)(plan.q_slots, plan.k_slots, plan.q_live, plan.k_live, *per_head)
        made = launches(AttendCall(q, k, v, plan, 0.1, tail=tail, return_lse=True), DEVICES[card], tile)
        kinds.append([(launch.kernel.__name__, launch.compile_time(target(*card))[1:]) for launch in made])
    assert all(one == other for one, other in pairwise(kinds))
    assert len(kinds[0]) == {None: 1, "row": 2, "block": 3}[tail] + 2 * bool(tile.boxes)
