"""Hooks on a MODEL: every earlier hook still runs, order of wiring does not matter, the input stays as it was."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, sample

OVERRIDE = "optimized_attention_override"
TINY = BY_NAME["wan"]


class Foreign:
    """An attention override of another pack: counts, and calls what it found in the slot."""

    def __init__(self, trace: list, change=lambda q: q) -> None:
        self.trace, self.change, self.previous = trace, change, None

    def on(self, model):
        model = model.clone()
        options = model.model_options["transformer_options"]
        self.previous = options.get(OVERRIDE)
        options[OVERRIDE] = self
        return model

    def __call__(self, func, q, *args, **kwargs):
        self.trace.append("foreign")
        assert kwargs["_inside_attn_wrapper"] is True
        if self.previous is not None:
            return self.previous(func, self.change(q), *args, **kwargs)
        return func(self.change(q), *args, **kwargs)


@pytest.fixture
def base(comfy):
    return TINY.model()


@pytest.fixture
def plain(base):
    return sample(base, TINY, steps=1)


# -------------------------------------------------------------------------------------------- order and chaining

def test_previous_override_is_called_for_every_call(base, plain):
    trace: list = []
    model = attach(Foreign(trace).on(base), "ours", "sparse", trace)
    assert torch.equal(sample(model, TINY, steps=1), plain)
    assert trace == ["ours", "foreign", "foreign"] * 2, "self attention through both, cross attention through theirs"


def test_previous_override_is_called_when_we_take_over(base):
    trace: list = []
    model = attach(Foreign(trace).on(base), "ours", "sparse", trace, lambda call: call.dense(call.q, call.k, call.v))
    sample(model, TINY, steps=1)
    assert trace == ["ours", "foreign", "foreign"] * 2


def test_later_override_calls_us(base, plain):
    trace: list = []
    model = Foreign(trace).on(attach(base, "ours", "sparse", trace))
    assert torch.equal(sample(model, TINY, steps=1), plain)
    assert trace == ["foreign", "ours", "foreign"] * 2


def test_same_node_twice_stacks_in_order(base, plain):
    trace: list = []
    model = attach(attach(base, "first", "sparse", trace), "second", "sparse", trace)
    assert torch.equal(sample(model, TINY, steps=1), plain)
    assert trace == ["second", "first"] * 2, "the last is the outermost"


@pytest.mark.parametrize("kinds", list(itertools.permutations(["control", "sparse", "quant"])), ids=" ".join)
def test_order_of_wiring_does_not_matter_between_kinds(base, kinds):
    trace: list = []
    model = base
    for kind in kinds:
        model = attach(model, kind, kind, trace)
    sample(model, TINY, steps=1)
    assert trace == ["control", "sparse", "quant"] * 2


def test_foreign_hook_between_two_of_ours(base, plain):
    trace: list = []
    model = attach(Foreign(trace).on(attach(base, "inner", "quant", trace)), "outer", "sparse", trace)
    assert torch.equal(sample(model, TINY, steps=1), plain)
    assert trace == ["outer", "foreign", "inner", "foreign"] * 2


def test_below_a_hook_that_changes_queries_nothing_is_assumed(base):
    from interspatial.models import host

    trace: list = []
    foreign = Foreign(trace, change=lambda q: q.flip(1))
    model = attach(foreign.on(attach(base, "inner", "quant", trace)), "outer", "sparse", trace)
    sample(model, TINY, steps=1)
    assert "inner" not in trace
    assert "rearranged the tokens" in host.report_of(model)


@pytest.mark.parametrize("keeps", [True, False], ids=["layout kept", "tokens rearranged"])
def test_inner_method_sees_changed_tensors_only_with_a_layout(base, keeps):
    trace: list = []

    def outer(call):
        return call.dense(call.q * 2, call.k, call.v, layout=call.layout if keeps else None)

    model = attach(attach(base, "inner", "quant", trace), "outer", "sparse", trace, outer)
    sample(model, TINY, steps=1)
    assert trace == (["outer", "inner"] * 2 if keeps else ["outer"] * 2)


def test_block_replacement_still_runs(base, plain):
    seen, trace = [], []

    def replace(args, extra):
        seen.append(args["transformer_options"]["block_index"])
        return extra["original_block"](args)

    model = base.clone()
    for index in range(2):
        model.set_model_patch_replace(replace, "dit", "double_block", index)
    assert torch.equal(sample(attach(model, "ours", "sparse", trace), TINY, steps=1), plain)
    assert seen == [0, 1]
    assert trace == ["ours", "ours"]


def test_earlier_wrappers_still_run(base, plain):
    import comfy.patcher_extension as extension

    seen, model = [], base.clone()
    for kind in ("OUTER_SAMPLE", "PREDICT_NOISE", "APPLY_MODEL", "DIFFUSION_MODEL"):
        def wrapper(executor, *args, kind=kind, **kwargs):
            seen.append(kind)
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(getattr(extension.WrappersMP, kind), "theirs", wrapper)
    assert torch.equal(sample(attach(model, "ours", "sparse", []), TINY, steps=1), plain)
    assert seen == ["OUTER_SAMPLE", "PREDICT_NOISE", "APPLY_MODEL", "DIFFUSION_MODEL"]


def test_skipped_blocks_keep_the_numbers_of_the_others(base):
    layers, model = [], base.clone()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 0)
    sample(attach(model, "ours", "sparse", [], lambda call: layers.append(call.layer) or call.dense()), TINY, steps=1)
    assert layers == [1]


# -------------------------------------------------------------------------------------------- the model that came in

def test_input_model_and_clones_stay_apart(base, plain):
    from interspatial.models import host

    trace: list = []
    one = attach(base, "one", "sparse", trace)
    two, three = attach(one, "two", "sparse", trace), attach(one, "three", "control", trace)
    assert [len(host.patches_of(model)) for model in (base, one, two, three)] == [0, 1, 2, 2]
    assert OVERRIDE not in base.model_options["transformer_options"]
    for model, names in ((one, {"one"}), (two, {"one", "two"}), (three, {"one", "three"})):
        trace.clear()
        sample(model, TINY, steps=1)
        assert set(trace) == names
    assert torch.equal(sample(base, TINY, steps=1), plain)


def test_wrappers_are_added_once(base):
    from comfy.patcher_extension import WrappersMP

    model = attach(attach(base, "one", "sparse", []), "two", "control", [])
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.APPLY_MODEL):
        assert len(model.get_all_wrappers(kind)) == 1


def test_unknown_kind_is_refused(base):
    with pytest.raises(ValueError, match="Accepted: measure, control"):
        attach(base, "ours", "magic", [])


def test_reports_belong_to_their_clone(base, caplog):
    from interspatial.models import host

    one = attach(base, "one", "sparse", [])
    two = attach(one, "two", "sparse", [])
    assert host.report_of(one) == host.report_of(base) == ""
    with caplog.at_level(logging.INFO, "interspatial"):
        sample(two, TINY, steps=1)
    assert host.report_of(two) == "two 2/2 layers, 1/1 steps\none 2/2 layers, 1/1 steps"
    assert host.report_of(two.clone()) == host.report_of(two), "a node behind ours clones the model"
    assert host.report_of(one) == ""
    assert host.report_of(two).splitlines() == [record.getMessage() for record in caplog.records]


def test_replaced_hook_is_reported(base):
    from interspatial.models import host

    model = attach(base, "ours", "sparse", [])
    model.model_options["transformer_options"][OVERRIDE] = lambda func, *args, **kwargs: func(*args, **kwargs)
    sample(model, TINY, steps=1)
    assert host.report_of(model).startswith("ours saw no call: a node after it replaced ComfyUI's own hook")
