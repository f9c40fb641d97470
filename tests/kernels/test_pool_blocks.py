"""Block means against a float64 loop, on both ways of computing them."""

from __future__ import annotations

import pytest
import torch
from interspatial.kernels import pool_blocks as module
from interspatial.kernels.head_rows import head_rows
from interspatial.kernels.pool_blocks import (
    pool_blocks,
    pool_blocks_reference,
    pool_squares,
    pool_squares_reference,
    slot_bias,
)

pytestmark = pytest.mark.usefixtures("poisoned")

B, H, D = 2, 3, 24


def ragged(tokens: int, heads: int = 1, size: int = 16) -> torch.Tensor:
    """A random order of the tokens in blocks of 1 to 16 slots, and one block without a token."""
    draw = torch.Generator().manual_seed(tokens)
    blocks = -(-tokens // 5) + 1
    slots = torch.full((heads, blocks, size), -1, dtype=torch.int32)
    for g in range(heads):
        order, at = torch.randperm(tokens, generator=draw), 0
        for j in range(blocks - 1):
            n = min(5, tokens - at)
            slots[g, j, :n] = order[at : at + n]
            at += n
    return slots


def naive(x, slots, bias):
    mean = torch.zeros(B, slots.shape[1], H, x.shape[-1], dtype=torch.float64)
    mass = torch.full(mean.shape[:3], -torch.inf, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for j, block in enumerate(slots[b * H + h if len(slots) > 1 else 0].tolist()):
                live = [t for t in block if t >= 0]
                weights = [1.0 if bias is None else float(bias[b, t].double().exp()) for t in live]
                if sum(weights) > 0:
                    mean[b, j, h] = sum(w * x[b, t, h].double() for w, t in zip(weights, live, strict=True))
                    mean[b, j, h] /= sum(weights)
                    mass[b, j, h] = torch.tensor(sum(weights), dtype=torch.float64).log()
    return mean, mass


def bias_of(tokens: int, slots: torch.Tensor) -> torch.Tensor:
    bias = torch.randn(B, tokens, generator=torch.Generator().manual_seed(1))
    bias[0, ::2] = -torch.inf
    first = slots[0, 0]
    bias[1, first[first >= 0].long()] = -torch.inf
    return bias


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("heads", [1, B * H], ids=["shared", "per head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 63, 65])
def test_mean_and_mass_match_a_float64_loop(tokens, dtype, heads, with_bias):
    slots = ragged(tokens, heads)
    x = torch.randn(B, tokens, H, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias = bias_of(tokens, slots) if with_bias else None
    want = naive(x, slots, bias)
    for pool in (pool_blocks, pool_blocks_reference):
        for got, true in zip(pool(x, slots, bias), want, strict=True):
            assert got.dtype == torch.float32  # sums in fp32 whatever x is
            torch.testing.assert_close(got.double(), true, atol=2e-6, rtol=2e-6)


def test_both_ways_agree_and_chunks_change_nothing(monkeypatch):
    slots = ragged(65)
    x = torch.randn(B, 65, H, D, generator=torch.Generator().manual_seed(0))
    weight, _ = module._weights(slots, bias_of(65, slots), B, H)
    bag = module._bag(head_rows(x), slots, weight)
    gather, square = module._gather(head_rows(x), slots, weight, True)
    torch.testing.assert_close(bag, gather, atol=1e-6, rtol=1e-6)
    for name in ("CPU_BYTES", "SQUARE_BYTES"):
        monkeypatch.setattr(module, name, 1)
    torch.testing.assert_close(module._gather(head_rows(x), slots, weight, False)[0], gather, atol=1e-6, rtol=1e-6)
    in_parts = pool_squares(x, slots, bias_of(65, slots), backend="torch")[2].transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(in_parts.flatten(0, 1), square, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("heads", [1, B * H], ids=["shared", "per head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squares_have_the_same_weights(dtype, heads):
    slots = ragged(65, heads)
    x = torch.randn(B, 65, H, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    for bias in (None, bias_of(65, slots)):
        true = *naive(x, slots, bias), naive(x.double().square(), slots, bias)[0]
        for pool in (pool_squares, pool_squares_reference):
            for got, want in zip(pool(x, slots, bias), true, strict=True):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got.double(), want, atol=4e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(4, 3, 8)}, "3 dims"),
        ({"slots": torch.zeros(5, 1, 4, dtype=torch.int32)}, "serve 5 heads; x has 6"),
        ({"key_bias": torch.zeros(2, 3)}, r"\[2, 3\]; it must be \[2, 4\]"),
    ],
)
def test_what_it_refuses(change, said):
    given = {"x": torch.zeros(2, 4, 3, 8), "slots": torch.zeros(1, 1, 4, dtype=torch.int32)} | change
    with pytest.raises(ValueError, match=said):
        pool_blocks(**given)


def test_strides_do_not_matter():
    slots = ragged(63)
    x = torch.randn(B, 63, H, D, generator=torch.Generator().manual_seed(0))
    want, _ = pool_blocks(x, slots)
    for other in (x.transpose(1, 2).contiguous().transpose(1, 2), torch.stack((x, -x), 2)[:, :, 0]):
        assert not other.is_contiguous()
        assert torch.equal(pool_blocks(other, slots)[0], want)


def test_a_weight_of_one_counts_tokens():
    slots = ragged(63)
    _, mass = pool_blocks(torch.zeros(B, 63, H, D), slots)
    torch.testing.assert_close(mass.exp().sum(1), torch.full((B, H), 63.0))
    assert (mass[:, -1] == -torch.inf).all()  # the block without a token


@pytest.mark.parametrize("heads", [1, B * H], ids=["shared", "per head"])
def test_slot_bias_follows_the_tokens(heads):
    slots = ragged(65, heads)
    bias = bias_of(65, slots)
    got = slot_bias(slots, bias, H)
    assert len(got) == (B if heads == 1 else B * H)
    for g in range(B * H):
        entry = got[g * len(got) // (B * H)]
        table = slots[g if heads > 1 else 0]
        live = table >= 0
        assert torch.equal(entry[live], bias[g // H, table[live].long()])
        assert (entry[~live] == -torch.inf).all()
