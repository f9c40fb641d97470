"""Routers, tokens and plans, against closed forms."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.dynamic.plan import Shares, plans, ramp
from interspatial.models.dynamic.routers import Affine, BlockRouter, kept
from interspatial.models.dynamic.tokens import choose, count, put, take
from interspatial.tests.models.dynamic.made import always, normal, selector, token_head


def test_the_first_part_is_always_kept():
    e = normal(5, 16, seed=0)
    assert kept(always([False, False], 16), e) == [(0,)] * 5
    assert kept(always([False, True], 16), e) == [(0, 2)] * 5
    assert kept(always([True, True], 16), e) == [None] * 5
    assert kept(None, e) == [None] * 5


def test_a_logit_of_exactly_zero_is_not_above_one_half():
    router = Affine(torch.ones(1, 2), torch.tensor([-3.0]))
    assert kept(router, torch.tensor([[1.0, 2.0], [1.0, 2.0001]])) == [(0,), None]


def test_plans_of_all_levels_are_those_of_each():
    width, routers = 12, []
    for i in range(3):
        heads, groups = (Affine(normal(n, 12, seed=9 * i + n), normal(n, seed=i)) for n in (3, 7))
        routers.append(BlockRouter(heads, groups, token_head(width) if i != 1 else None))
    e, shares = normal(6, width, seed=50), [[0.1 * s + 0.05 * i + 0.1 for i in range(3)] for s in range(6)]
    together = plans(routers, e, shares)
    assert together == [plans(routers, e[s : s + 1], shares[s : s + 1])[0] for s in range(6)]
    assert len({plan for level in together for plan in level}) > 6, "decisions differ between levels and blocks"
    for s, level in enumerate(together):
        for plan, router, share in zip(level, routers, shares[s], strict=True):
            on = [True, *(torch.sigmoid(router.heads(e[s])) > 0.5).tolist()]
            assert plan.heads == (None if all(on) else tuple(i for i, o in enumerate(on) if o))
            assert plan.share == (share if router.tokens else 1.0)


def test_shares_between_noise_levels():
    shares = Shares((0.2, 0.6, 1.0), ((0.5, 1.0), (0.7, 0.2), (0.9, 0.4)))
    assert shares.at(0.1) == shares.at(0.2) == (0.5, 1.0)
    assert shares.at(2.0) == shares.at(1.0) == (0.9, 0.4)
    assert shares.at(0.3) == pytest.approx((0.55, 0.8))
    assert shares.at(0.6) == pytest.approx((0.7, 0.2))


def test_the_schedule_of_files_without_shares():
    assert [ramp(p) for p in (0.0, 0.19, 0.2, 0.5, 0.89, 0.9, 1.0)] == [1.0, 1.0, 0.6, 0.6, 0.6, 0.8, 0.8]


@pytest.mark.parametrize(("share", "tokens", "expected"), [(0.7, 10, 7), (0.5, 7, 4), (0.0, 9, 1), (1.0, 9, 9)])
def test_count(share, tokens, expected):
    assert count(share, tokens) == expected


def test_chosen_tokens_go_back_to_their_places(poisoned):
    x, logits = normal(3, 7, 5, seed=1), normal(3, 7, seed=2)
    chosen = choose(logits, 4)
    mask = torch.zeros(3, 7)
    for row, values in enumerate(logits.tolist()):
        for token in sorted(range(7), key=lambda i: -values[i])[:4]:
            mask[row, token] = 1.0
    assert take(x, chosen).shape == (3, 4, 5)
    assert torch.equal(put(take(x, chosen), chosen, 7), x * mask[..., None])


def test_rows_choose_for_themselves():
    logits = normal(4, 9, seed=3)
    assert torch.equal(choose(logits, 3), torch.cat([choose(row[None], 3) for row in logits]))


def test_token_head_in_float64():
    head, x = token_head(32), normal(2, 7, 32, seed=5)
    hidden = (x.double() @ head.first.weight.double().T + head.first.bias).clamp(min=0)
    want = hidden @ head.second.weight.double()[0] + head.second.bias
    torch.testing.assert_close(head.logits(x).double(), want, rtol=1e-5, atol=1e-5)


def test_selector_in_float64():
    one, image, text, vec = selector(16), normal(2, 7, 16, seed=6), normal(2, 3, 16, seed=7), normal(2, 16, seed=8)

    def normed(x):
        x = x.double()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * one.norm.weight + one.norm.bias

    for row in range(2):
        v = vec[row].double()
        moves = one.time.weight.double() @ (v * torch.sigmoid(v)) + one.time.bias
        shift, scale, shift_t, scale_t = moves[:16], moves[16:32], moves[32:48], moves[48:]
        words = (normed(text[row]) * (1 + scale_t) + shift_t).mean(0)
        want = (normed(image[row]) * (1 + scale) + shift + words) @ one.router.weight.double()[0]
        torch.testing.assert_close(one.logits(image, text, vec)[row].double(), want, rtol=1e-4, atol=1e-4)


