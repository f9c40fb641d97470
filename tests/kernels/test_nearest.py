"""The nearest centroid in torch, what is refused, and the Triton backend outside of its kernel: it compiles for cards
that are not here, once whatever the lengths. What the kernel computes: interpreted_triton_nearest.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from interspatial.kernels import triton_nearest
from interspatial.kernels.nearest import BACKENDS, NearestCall, nearest, nearest_reference
from interspatial.kernels.triton_nearest import EXACT, TILES, WIDE, Tile
from interspatial.tests.kernels.conftest import Launch, Recorder
from interspatial.tests.no_waits import no_waits

AMPERE, HOPPER, CDNA = ("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)
SHARED = {AMPERE: 166912, HOPPER: 232448, CDNA: 65536}  # bytes of shared memory that one program may have
SHAPES = [(1, 1, 1, 4), (1, 37, 3, 7), (2, 129, 2, 32), (2, 300, 3, 16)]  # B N H D


def empty(tokens: int, clusters: int, dim: int, heads: int = 2, batch: int = 1, dtype=torch.bfloat16) -> NearestCall:
    x = torch.empty(batch, tokens, heads, dim, dtype=dtype, device="meta")
    return NearestCall(x, torch.empty(batch * heads, clusters, dim, device="meta"), None)


@pytest.fixture
def nearest_launch(monkeypatch) -> Callable[..., Launch]:
    """What the Triton backend launches for a call with a tile; nothing runs."""
    pytest.importorskip("triton")
    from interspatial.kernels import triton_attend_kernel, triton_nearest_kernel

    if triton_attend_kernel.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set, so there are no kernels to compile")
    seen: list[Launch] = []
    recorder = Recorder(triton_nearest_kernel.nearest_kernel, seen)
    monkeypatch.setattr(triton_nearest, "_kernels", lambda: SimpleNamespace(nearest_kernel=recorder))
    first = SimpleNamespace(choose=lambda key, offered, launch: offered[0])
    monkeypatch.setattr(triton_nearest, "TUNER", first)

    def record(call: NearestCall, tile: Tile) -> Launch:
        monkeypatch.setattr(triton_nearest, "tiles", lambda x: (tile,))
        labels = triton_nearest.label(call)
        assert labels.dtype == torch.int32 and labels.shape == (len(call.centroids), call.x.shape[1])
        return seen.pop()

    return record


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return pytest.importorskip("triton.backends.compiler").GPUTarget


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_have_the_labels_of_the_reference(shape):
    """Ties too, to the lowest: every centroid stands there twice, and their middle is 0."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, shape, generator=draw).float()
    some = torch.randint(-3, 4, (shape[0] * shape[2], 6, shape[3]), generator=draw).float()
    centroids = torch.cat((some, -some) * 2, 1)
    want = nearest_reference(x, centroids)
    assert want.max() < 12
    for dtype in (torch.float32, torch.bfloat16):
        for max_bytes in (None, 1, 400):
            assert torch.equal(nearest(x.to(dtype), centroids, max_bytes, backend="torch"), want)


def test_the_reference_matches_a_closed_form():
    x = torch.arange(10.0).view(1, 10, 1, 1)
    assert nearest_reference(x, torch.tensor([[[0.0], [4], [4], [9]]])).tolist() == [[0, 0, 0, 1, 1, 1, 1, 3, 3, 3]]


@pytest.mark.parametrize(
    ("card", "dtype", "dim"),
    [
        (AMPERE, torch.bfloat16, 128),
        (HOPPER, torch.bfloat16, 128),
        (HOPPER, torch.float16, 96),
        (HOPPER, torch.bfloat16, 256),
        (CDNA, torch.bfloat16, 64),
        (HOPPER, torch.float32, 128),
    ],
    ids=str,
)
def test_the_first_tile_compiles_and_fits(card, dtype, dim, nearest_launch, target):
    matrix = {AMPERE: "mma", HOPPER: "wgmma", CDNA: "amd"}[card]
    tile = EXACT if dtype == torch.float32 else (WIDE if dim > 128 else TILES)[matrix][0]
    made = nearest_launch(empty(1000, 37, dim, dtype=dtype), tile)
    assert made.grid == (2 * -(-1000 // tile.M),)
    found = made.compiled(target(*card))
    assert 0 < found.metadata.shared <= SHARED[card]
    assert found.asm["hsaco" if card == CDNA else "cubin"]
    if card == HOPPER and dtype != torch.float32:
        assert "wgmma" in found.asm["ptx"] and "cp.async" in found.asm["ptx"]


@pytest.mark.parametrize("card", [HOPPER, CDNA], ids=str)
def test_no_length_compiles_anything_anew(card, nearest_launch, target):
    """Numbers of 1 and multiples of 16 are what Triton would otherwise make variants of."""
    tile = Tile(64, 32, 4, 2)
    calls = [empty(*n) for n in ((64, 32, 64, 1), (1, 1, 64, 3), (75_600, 1000, 64, 40), (1001, 17, 64, 5, 2))]
    kinds = [nearest_launch(call, tile).compile_time(target(*card))[1:] for call in calls]
    assert all(one == other for one, other in pairwise(kinds))


def test_offsets_are_64_bits_wide(nearest_launch, target):
    """Strides reach the kernel whole, in units of 8, and what is multiplied with them is 64 bits wide."""
    x = torch.empty_strided((2, 9, 3, 64), (1 << 36, 1 << 34, 1 << 35, 1), dtype=torch.bfloat16, device="meta")
    made = nearest_launch(NearestCall(x, torch.empty(6, 5, 64, device="meta"), None), Tile(64, 32, 4, 2))
    assert [made.arguments[f"x_{axis}"] for axis in "bnh"] == [1 << 33, 1 << 31, 1 << 32]
    usual = nearest_launch(empty(120_000, 1000, 64, 40, 2), Tile(64, 32, 4, 2))
    ttir = usual.compiled(target(*HOPPER)).asm["ttir"]
    offsets = re.findall(r"tt.addptr .* : (?:tensor<)?(\S*!tt.ptr<\w+>)>?, (?:tensor<)?(\S+?)>?\s", ttir)
    assert offsets[:2] == [("!tt.ptr<bf16>", "i64"), ("64x1x!tt.ptr<bf16>", "64x1xi64")]  # head, token
    assert {("!tt.ptr<bf16>", "i64"), ("!tt.ptr<i32>", "i64")} <= set(offsets)


def test_a_device_is_never_waited_for(nearest_launch):
    with no_waits():
        nearest_launch(empty(1000, 37, 64), Tile(64, 32, 4, 2))
        call = empty(1000, 37, 64)
        assert nearest(call.x, call.centroids).device.type == "meta"


def test_reasons(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, centroids = torch.zeros(1, 5, 2, 16), torch.zeros(2, 3, 16)
    assert "TRITON_INTERPRET=1" in BACKENDS.reasons(NearestCall(x, centroids, None))["triton"]
    assert BACKENDS.reasons(NearestCall(x, centroids, None))["torch"] is None
    assert "float64" in triton_nearest.why_not(NearestCall(x.double(), centroids, None))
    assert "head dim is 20" in triton_nearest.why_not(NearestCall(torch.zeros(1, 5, 2, 20), centroids, None))
    assert "head dim is 264" in triton_nearest.why_not(NearestCall(torch.zeros(1, 5, 2, 264), centroids, None))
    with pytest.raises(ValueError, match=r"triton backend .* \(TRITON_INTERPRET=1\)"):
        nearest(x, centroids, backend="triton")


@pytest.mark.parametrize(
    ("x", "centroids", "says"),
    [
        (torch.zeros(5, 2, 4), torch.zeros(2, 3, 4), r"\[5, 2, 4\]; they must be floating point \[B, N, H, D\]"),
        (torch.zeros(1, 5, 2, 4, dtype=torch.int32), torch.zeros(2, 3, 4), "torch.int32 .* must be floating point"),
        (torch.zeros(1, 5, 2, 4), torch.zeros(1, 3, 4), r"float32 \[1, 3, 4\]; they must be float32 \[2, C, 4\]"),
        (torch.zeros(1, 5, 2, 4), torch.zeros(2, 3, 4).half(), "float16 .* must be float32"),
        (torch.zeros(1, 5, 2, 4), torch.zeros(2, 0, 4), "no centroids"),
        (torch.zeros(1, 5, 2, 4), torch.zeros(2, 3, 4, device="meta"), "on meta and the tokens on cpu"),
    ],
)
def test_what_is_refused(x, centroids, says):
    with pytest.raises(ValueError, match=says):
        nearest(x, centroids)
