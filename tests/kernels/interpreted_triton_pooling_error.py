"""The Triton backend of the error of pooling against its definition in float64 and against torch.

Only for a process with TRITON_INTERPRET=1: test_in_interpreter.py starts it.
"""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import triton_pooling_error
from interspatial.kernels.pool_blocks import pool_blocks, slot_bias
from interspatial.kernels.pooling_error import BACKENDS, KeyBlocks, pooling_error, pooling_error_reference

pytestmark = pytest.mark.usefixtures("interpreter")

B, N, H = 2, 21, 2


def keys_of(dim: int, dtype: torch.dtype, size: int = 4, bias: bool = False) -> KeyBlocks:
    """Ragged blocks over a random order of the tokens, one of them empty; with a bias one of them dead."""
    draw = torch.Generator().manual_seed(0)
    k, v = (torch.randn(B, N, H, dim, generator=draw).to(dtype) for _ in "kv")
    order = torch.rand(B * H, N, generator=draw).argsort(1).int()
    slots = torch.full((B * H, 2 * N // size + 2, size), -1, dtype=torch.int32)
    for g, line in enumerate(order):
        at = 0
        for p in range(slots.shape[1] - 1):
            n = int(torch.randint(1, size + 1, (), generator=draw))
            n = min(n, N - at) if p < slots.shape[1] - 2 else min(size, N - at)
            slots[g, p, :n] = line[at : at + n]
            at += n
    weights = None
    if bias:
        weights = torch.randn(B, N, generator=draw)
        weights[:, ::5] = -torch.inf
        weights[0, slots[0, 2][slots[0, 2] >= 0].long()] = -torch.inf
    mean, value = (pool_blocks(x, slots, weights)[0].transpose(1, 2).flatten(0, 1).contiguous() for x in (k, v))
    return KeyBlocks(k, v, slots, mean, value, slot_bias(slots, weights, H).exp_())


def queries(count: int, dim: int, heads: int = B * H) -> torch.Tensor:
    return torch.randn(heads, count, dim, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("count", "dim", "dtype", "split"),
    [
        (5, 16, torch.float32, False),
        (33, 24, torch.float16, False),
        (40, 32, torch.bfloat16, True),
        (3, 16, torch.bfloat16, False),
    ],
    ids=str,
)
def test_it_is_what_the_definition_says(count, dim, dtype, split, bias, monkeypatch):
    tile = {"M": 32, "SPLIT": split, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(triton_pooling_error, "_tile", lambda call: tile)
    monkeypatch.setattr(triton_pooling_error, "SPAN", 5)  # several programs to a head, the last one short
    keys, query = keys_of(dim, dtype, bias=bias), queries(count, dim)
    want = pooling_error_reference(query, keys, 0, dim**-0.5)
    assert want.max() > 0
    for backend in ("triton", "torch"):
        got = pooling_error(query, keys, 0, dim**-0.5, backend=backend)
        # the split loses the last bits in the interpreter, which cuts bfloat16 off instead of rounding it
        torch.testing.assert_close(got, want, atol=1e-6 * float(want.max()), rtol=2e-4)


def test_some_heads_at_a_time_are_the_same():
    keys, query = keys_of(16, torch.float32), queries(5, 16)
    want = pooling_error(query, keys, 0, 0.25, backend="triton")
    for first, last in ((0, 1), (1, 3), (3, 4)):
        assert torch.equal(pooling_error(query[first:last], keys, first, 0.25, backend="triton"), want[first:last])


def test_far_apart_logits_do_not_overflow():
    keys, query = keys_of(16, torch.float32), 200 * queries(5, 16)
    want = pooling_error_reference(query, keys, 0, 0.25)
    got = pooling_error(query, keys, 0, 0.25, backend="triton")
    assert got.isfinite().all()
    torch.testing.assert_close(got, want, atol=1e-3 * float(want.max()), rtol=1e-2)


@pytest.mark.parametrize("stored", ["heads first", "part", "odd strides"])
def test_strides_do_not_matter(stored):
    keys, query = keys_of(16, torch.float32), queries(5, 16)
    want = pooling_error(query, keys, 0, 0.25, backend="triton")

    def put(x):
        return {
            "heads first": lambda: x.transpose(1, 2).contiguous().transpose(1, 2),
            "part": lambda: torch.cat((x, x), -1)[..., 16:],
            "odd strides": lambda: torch.cat((x, x[..., :1]), -1)[..., :16],
        }[stored]()

    far = KeyBlocks(put(keys.k), put(keys.v), keys.slots, keys.mean, keys.value, keys.weight)
    assert torch.equal(pooling_error(query, far, 0, 0.25, backend="triton"), want)


def test_it_is_the_first_choice():
    assert [backend.name for backend in BACKENDS.backends] == ["triton", "torch"]
    keys, query = keys_of(16, torch.bfloat16), queries(5, 16)
    want = pooling_error(query, keys, 0, 0.25, backend="triton")
    assert torch.equal(pooling_error(query, keys, 0, 0.25), want)
