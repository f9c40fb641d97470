"""Covering the forward of blocks: what they see, what is put back, and that the call goes on as the model made it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.models.block_visits import (
    blocks_of,
    covered,
    visiting_blocks,
    visiting_modules,
    without_prefetch,
)
from torch import nn


class Block(nn.Module):
    """Adds to its stream what it is given; writes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.absent = None

    def forward(self, x, add, options=None):
        return x.add_(self.part(add))


class Double(nn.Module):
    def forward(self, img, txt):
        return img + 1, txt * 2


class Model(nn.Module):
    """Two kinds of stacks; keeps what it gave to the first block, and writes into what it gets back."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList([Double()])
        self.rest = nn.ModuleDict({"a": Block(), "b": Block()})

    def forward(self, img, txt):
        img, txt = self.pairs[0](img, txt=txt)
        given = torch.cat((img, txt))
        x = self.rest["a"](given, add=img.new_ones(()))
        x += 100
        return given, self.rest["b"](x, 5.0 * img.new_ones(()), options={})


def family(**changes):
    fields = {"streams": {"pairs": ("img", "txt"), "rest": ("x",)}, "batch_axis": 0, "modules": ("part", "absent")}
    return SimpleNamespace(**{**fields, **changes})


def inputs():
    return torch.zeros(1, 2), torch.ones(1, 2)


def test_each_block_is_visited_in_order_with_its_streams():
    seen, model = [], Model()

    def visit(index, streams, run):
        seen.append((index, tuple(x.clone() for x in streams)))
        return run(*streams)

    plain = Model()(*inputs())
    with visiting_blocks(model, family(), visit):
        found = model(*inputs())
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert [index for index, _ in seen] == [0, 1, 2]
    assert [len(streams) for _, streams in seen] == [2, 1, 1]
    assert torch.equal(seen[2][1][0], torch.tensor([[102.0, 102.0], [103.0, 103.0]]))
    assert [names for _, names in blocks_of(model, family())] == [("img", "txt"), ("x",), ("x",)]
    assert blocks_of(model, family(streams={"nowhere": ("x",)})) == []


def test_a_visitor_may_answer_in_place_of_the_block():
    model = Model()
    with visiting_blocks(model, family(), lambda index, streams, run: streams):
        _, found = model(*inputs())
    assert torch.equal(found, torch.tensor([[100.0, 100.0], [101.0, 101.0]])), "what the model adds stays"


def test_what_the_model_gave_to_its_first_block_is_not_what_it_gets_back():
    """VACE reads it again after it has written hints into what came back."""
    model = Model()
    with visiting_blocks(model, family(streams={"rest": ("x",)}), lambda index, streams, run: streams):
        given, found = model(*inputs())
    assert torch.equal(given, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    assert torch.equal(found, given + 100)


def test_the_call_goes_on_as_the_model_made_it():
    """Another pack's forward has other names for its parameters: positions stay positions, names stay names."""
    model, calls = Model(), []

    def theirs(hidden, *args, **kwargs):
        calls.append((len(args), sorted(kwargs)))
        return hidden

    for block in model.rest.values():
        block.forward = theirs
    with visiting_blocks(model, family(), lambda index, streams, run: run(*streams)):
        model(*inputs())
    assert calls == [(0, ["add"]), (1, ["options"])]


def test_a_batch_further_back_comes_first():
    class Late(nn.Module):
        def forward(self, x):
            return x * torch.arange(3.0)[:, None]

    model, shapes = nn.Module(), []
    model.blocks = nn.ModuleList([Late()])

    def visit(index, streams, run):
        out = run(*streams)
        shapes.extend(tuple(x.shape) for x in (*streams, *out))
        return tuple(x + 1 for x in out)

    with visiting_blocks(model, family(streams={"blocks": ("x",)}, batch_axis=1), visit):
        found = model.blocks[0](torch.ones(5, 3, 2))
    assert shapes == [(3, 5, 2)] * 2
    assert torch.equal(found, torch.ones(5, 3, 2) * torch.arange(3.0)[:, None] + 1)


def test_parts_are_visited_by_name():
    model, seen = Model(), []

    def visit(index, name, run):
        seen.append((index, name, float(run())))
        return torch.zeros(())

    with visiting_modules(model, family(), visit):
        _, found = model(*inputs())
    assert seen == [(1, "part", 1.0), (2, "part", 5.0)]
    assert torch.equal(found, torch.tensor([[101.0, 101.0], [102.0, 102.0]]))


@pytest.mark.parametrize("raises", [False, True])
def test_forwards_come_back_however_it_ends(raises):
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(), Block()])
    theirs = lambda x, add: x   # noqa: E731
    model.blocks[1].forward = theirs
    try:
        with visiting_blocks(model, family(streams={"blocks": ("x",)}), lambda index, streams, run: run(*streams)):
            with covered([(model.blocks[0], lambda forward: forward)]):
                assert "forward" in model.blocks[0].__dict__
                if raises:
                    raise InterruptedError
            assert "forward" in model.blocks[0].__dict__, "the outer cover is still there"
    except InterruptedError:
        assert raises
    assert "forward" not in model.blocks[0].__dict__
    assert model.blocks[1].__dict__["forward"] is theirs


def test_a_cover_that_cannot_be_made_leaves_nothing_behind():
    first, second = Block(), Block()

    def fails(forward):
        raise LookupError

    with pytest.raises(LookupError), covered([(first, lambda forward: forward), (second, fails)]):
        pass
    assert "forward" not in {**first.__dict__, **second.__dict__}


def test_weights_are_not_fetched_ahead_where_no_block_runs():
    class Asks(nn.Module):
        def forward(self, x, transformer_options=None):
            return transformer_options

    model, options = Asks(), {"prefetch_dynamic_vbars": True, "other": 1}
    with without_prefetch(model):
        assert model(0, transformer_options=options) == {"prefetch_dynamic_vbars": False, "other": 1}
    assert model(0, transformer_options=options) == {"prefetch_dynamic_vbars": True, "other": 1}
