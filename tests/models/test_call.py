"""One attention call: all layouts of q, k, v, grouped queries, masks, the branches in its batch."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.report import Card
from interspatial.tests.models.probes import Traced, attach
from interspatial.tests.models.tinies import BY_NAME, sample

TINY = BY_NAME["wan"]


class Offered:
    """Offers hand-made calls to an `AttentionChain`, as a model would."""

    def __init__(self, method, tokens: int = 5, previous=None) -> None:
        from interspatial.models.forward import Branch, Forward
        from interspatial.models.host import Patch
        from interspatial.models.host.chain import FORWARD, RUN, AttentionChain
        from interspatial.models.layout import arrange
        from interspatial.models.report import Report
        from interspatial.models.run import Run
        from interspatial.models.schedule import Schedule

        self.run = Run(Schedule([1.0, 0.0], lambda p: 1.0 - p), Report())
        self.forward = Forward(None, arrange([("text", tokens - 4), ("video", (1, 2, 2))]), 2, (
            Branch("p", 0, slice(0, 1)), Branch("n", 1, slice(1, 2))))
        self.options = {FORWARD: self.forward, RUN: self.run}
        patch = Patch(Card("m", "sparse"), method, "attention")
        self.chain = AttentionChain((patch,), previous)

    def __call__(self, *args, **kwargs):
        return self.chain(*args, transformer_options=self.options, _inside_attn_wrapper=True, **kwargs)


def plain_attention(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False,
                    **kwargs):
    """Attention by the book, with ComfyUI's layouts and masks."""
    assert kwargs["_inside_attn_wrapper"] is True
    if not skip_reshape:
        q, k, v = (t.unflatten(-1, (-1, q.shape[-1] // heads)).transpose(1, 2) for t in (q, k, v))
    if kwargs.get("enable_gqa"):
        k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    score = q @ k.transpose(-1, -2) * kwargs.get("scale", q.shape[-1] ** -0.5)
    if mask is not None:
        score = score + (mask if mask.is_floating_point() else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf))
    out = score.softmax(-1) @ v
    return out if skip_output_reshape else out.transpose(1, 2).flatten(-2)


def by_heads(batch: int = 2, tokens: int = 5, heads: int = 3, dim: int = 4, seed: int = 0) -> torch.Tensor:
    """[B, H, N, D]"""
    return torch.randn(batch, heads, tokens, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positional", [True, False], ids=["positional", "keyword"])
@pytest.mark.parametrize("split_output", [False, True], ids=["joined output", "split output"])
@pytest.mark.parametrize("split", [False, True], ids=["joined", "split"])
def test_all_layouts(comfy, split, split_output, positional):
    q, k, v = (by_heads(seed=seed) for seed in range(3))
    mask = torch.zeros(1, 1, 1, 5)
    mask[..., 0] = -1.5
    if not split:
        q, k, v = (t.transpose(1, 2).flatten(-2) for t in (q, k, v))
    flags = {"skip_reshape": split, "skip_output_reshape": split_output}
    truth = plain_attention(q, k, v, 3, mask=mask, **flags, _inside_attn_wrapper=True)

    def attend(call):
        assert call.q.shape == call.k.shape == call.v.shape == (2, 5, 3, 4)
        assert call.mask_reason() is None
        assert call.key_bias.tolist() == [[-1.5, 0.0, 0.0, 0.0, 0.0]]
        score = torch.einsum("bnhd,bmhd->bhnm", call.q, call.k) * 4 ** -0.5 + call.key_bias[:, None, None, :]
        return torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), call.v)

    for act in (attend, lambda call: call.dense(), lambda call: call.dense(call.q, call.k, call.v, mask=call.mask)):
        offered, trace = Offered(Traced("m", [], act)), []
        offered.chain.methods[0].method.trace = trace
        arguments = (3, mask) if positional else ()
        named = {} if positional else {"heads": 3, "mask": mask}
        out = offered(plain_attention, q, k, v, *arguments, **named, **flags)
        assert trace == ["m"]
        assert out.shape == truth.shape
        torch.testing.assert_close(out, truth)


@pytest.mark.parametrize("split", [False, True], ids=["joined", "split"])
def test_grouped_queries(comfy, split):
    q, k, v = by_heads(heads=6), by_heads(heads=2, seed=1), by_heads(heads=2, seed=2)
    if not split:
        q, k, v = (t.transpose(1, 2).flatten(-2) for t in (q, k, v))
    shapes = []

    def act(call):
        shapes.append((call.q.shape[2], call.k.shape[2], call.v.shape[2]))
        return call.dense(call.q, call.k, call.v)

    arguments = {"skip_reshape": split, "enable_gqa": True, "scale": 0.3}
    out = Offered(Traced("m", [], act))(plain_attention, q, k, v, 6, **arguments)
    torch.testing.assert_close(out, plain_attention(q, k, v, 6, **arguments, _inside_attn_wrapper=True))
    assert shapes == [(6, 2, 2)]


def test_fewer_queries_may_go_on(comfy):
    """A method may run part of the queries; the result has as many rows as it gave."""
    q, k, v = (by_heads(seed=seed) for seed in range(3))
    truth = plain_attention(q, k, v, 3, skip_reshape=True, _inside_attn_wrapper=True)

    def act(call):
        return torch.cat([call.dense(part, call.k, call.v) for part in call.q.split(2, dim=1)], 1)

    torch.testing.assert_close(Offered(Traced("m", [], act))(plain_attention, q, k, v, 3, skip_reshape=True), truth)


@pytest.mark.parametrize(("mask", "bias"), [
    (torch.tensor([[True, False, True, True, True]])[:, None], [[0.0, -torch.inf, 0.0, 0.0, 0.0]]),
    (torch.tensor([[0.0, -2.0, 0.0, 0.0, 1.0]]), [[0.0, -2.0, 0.0, 0.0, 1.0]]),
    (torch.arange(10.0).reshape(2, 1, 1, 5), [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]),
    (torch.zeros(5, 5), None),
    (torch.zeros(1, 3, 1, 5), None),
], ids=["bool", "one row", "per batch", "per query", "per head"])
def test_masks(comfy, mask, bias):
    said = []

    def act(call):
        said.append(call.mask_reason())
        if bias is not None:
            assert call.key_bias.tolist() == bias
        return call.dense()

    q, k, v = (by_heads(seed=seed) for seed in range(3))
    Offered(Traced("m", [], act))(lambda *args, **kwargs: args[0], q, k, v, 3, mask, skip_reshape=True,
                                  skip_output_reshape=True)
    assert said == [None if bias is not None else "the attention mask differs between queries or heads"]


@pytest.mark.parametrize("other", [None, torch.arange(5.0).reshape(1, 1, 1, 5)], ids=["no mask", "other mask"])
def test_dense_takes_the_mask_it_is_given(comfy, other):
    q, k, v = (by_heads(seed=seed) for seed in range(3))
    offered = Offered(Traced("m", [], lambda call: call.dense(call.q, call.k, call.v, mask=other)))
    out = offered(plain_attention, q, k, v, 3, torch.full((1, 1, 1, 5), -torch.inf), skip_reshape=True)
    truth = plain_attention(q, k, v, 3, other, skip_reshape=True, _inside_attn_wrapper=True)
    torch.testing.assert_close(out, truth)


def test_dense_with_tensors_may_not_forget_the_mask(comfy):
    q, k, v = (by_heads(seed=seed) for seed in range(3))
    offered = Offered(Traced("m", [], lambda call: call.dense(call.q, call.k, call.v)))
    with pytest.raises(ValueError, match="has a mask"):
        offered(plain_attention, q, k, v, 3, torch.zeros(1, 1, 1, 5), skip_reshape=True)
    assert offered.forward.finding is None, "an error leaves nothing behind"


@pytest.mark.parametrize(("batch", "queries", "keys", "says"), [
    (2, 5, 9, "cross attention from 5 tokens to 9 keys"),
    (2, 9, 9, "9 tokens, where the video with all that belongs to it has 5"),
    (4, 5, 5, "a batch of 4 where the model has 2"),
])
def test_calls_that_do_not_fit_go_on_untouched(comfy, batch, queries, keys, says):
    trace, seen = [], []

    def previous(func, *args, **kwargs):
        seen.append(args[:3])
        return func(*args, **kwargs)

    offered = Offered(Traced("m", trace), previous=previous)
    q, k, v = by_heads(batch, queries), by_heads(batch, keys), by_heads(batch, keys)
    out = offered(plain_attention, q, k, v, 3, skip_reshape=True)
    assert not trace
    assert all(given is original for given, original in zip(seen[0], (q, k, v), strict=True))
    assert torch.equal(out, plain_attention(q, k, v, 3, skip_reshape=True, _inside_attn_wrapper=True))
    assert offered.forward.explain(batch, queries, keys) == says


def test_outside_a_run_the_chain_is_not_there(comfy):
    from interspatial.models.host.chain import AttentionChain

    q = by_heads()
    out = AttentionChain((object(),))(plain_attention, q, q, q, 3, skip_reshape=True, _inside_attn_wrapper=True)
    assert torch.equal(out, plain_attention(q, q, q, 3, skip_reshape=True, _inside_attn_wrapper=True))


@pytest.mark.parametrize(("batch", "rows"), [(1, [(1, 0, 1), (0, 1, 2)]), (2, [(1, 0, 2), (0, 2, 4)])])
def test_branches_are_the_rows_of_the_batch(comfy, batch, rows):
    """ComfyUI puts the negative prompt first when both fit into one batch."""
    found = set()

    def act(call):
        found.add(tuple((b.cond, b.rows.start, b.rows.stop) for b in call.branches))
        return call.dense()

    sample(attach(TINY.model(), "ours", "sparse", [], act), TINY, cfg=3.0, batch=batch)
    assert found == {tuple(rows)}
