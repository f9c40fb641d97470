"""The Triton backend of block mass outside of its kernel. What it computes: interpreted_triton_mass.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from interspatial.kernels import triton_mass
from interspatial.kernels.block_plan import BlockPlan
from interspatial.kernels.mass_call import MassCall

B, H = 2, 2
AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
ADA_SHARED, HOPPER_SHARED, CDNA_SHARED = 101376, 232448, 65536  # 8.6, 8.9 and 12.0 have the least of NVIDIA's


@pytest.fixture
def target():
    return pytest.importorskip("triton.backends.compiler").GPUTarget


def lse_of(one) -> torch.Tensor:
    return torch.zeros(B, one.tokens, H)


@pytest.mark.parametrize(
    ("card", "shared", "dtype", "dim", "size"),
    [
        (AMPERE, ADA_SHARED, torch.bfloat16, 128, 64),
        (HOPPER, HOPPER_SHARED, torch.bfloat16, 256, 64),  # takes the most
        (CDNA, CDNA_SHARED, torch.float16, 96, 128),
    ],
    ids=str,
)
def test_it_compiles_and_fits(card, shared, dtype, dim, size, case, mass_launch, target, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    one = case(130, dim=dim, dtype=dtype, size=size)
    found = mass_launch(MassCall(*one.qkv[:2], lse_of(one), one.plan, 0.1, one.bias)).compiled(target(*card))
    assert 0 < found.metadata.shared <= shared
    assert found.asm["hsaco" if card == CDNA else "cubin"]


@pytest.mark.parametrize("card", [AMPERE, CDNA], ids=str)
def test_no_length_compiles_anything_anew(card, case, mass_launch, target):
    """Odd and even lengths, numbers of 1 and of multiples of 16: what Triton would otherwise make variants of."""
    kinds = []
    for tokens, batch, copies in ((64, 2, 1), (65, 1, 1), (1000, 2, 8), (1024, 1, 1)):
        one = case(tokens, size=64, dim=64, dtype=torch.bfloat16)
        q, k = (x[:batch].repeat(1, 1, copies, 1) for x in one.qkv[:2])
        made = mass_launch(MassCall(q, k, torch.zeros(q.shape[:3]), one.plan, 0.1))
        kinds.append(made.compile_time(target(*card))[1:])
    assert all(one == other for one, other in pairwise(kinds))


@pytest.mark.parametrize("rows", [None, 16])
def test_a_device_is_never_waited_for(rows, case, mass_launch):
    """On the meta device every read of a value raises."""
    one = case(300, "before", dtype=torch.bfloat16)
    tables = ("q_slots", "k_slots", "q_live", "k_live", "cols", "counts")
    plan = BlockPlan(*(getattr(one.plan, name).to("meta") for name in tables))
    q, k, lse, bias = (x.to("meta") for x in (*one.qkv[:2], lse_of(one), one.bias))
    made = mass_launch(MassCall(q, k, lse, plan, 0.1, bias, rows))
    assert made.grid == (B * H * len(one.blocks),) and made.arguments["R"] == (rows or plan.q_slots.shape[2])


def test_reasons_are_those_of_block_attention(case, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    one = case(64)
    assert "TRITON_INTERPRET=1" in triton_mass.why_not(MassCall(*one.qkv[:2], lse_of(one), one.plan, 0.1))
