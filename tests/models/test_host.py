"""Hooks on a MODEL: every earlier hook still runs, order of wiring does not matter, all layouts of q, k, v are served."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from interspatial.models.report import Card
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.tiny_dits import BY_NAME, sample

OVERRIDE = "optimized_attention_override"
TINY = BY_NAME["wan"]


class Traced:
    """Writes its name when it is asked, and lets `act` decide what happens."""

    def __init__(self, name: str, trace: list, act=lambda call: call.dense()) -> None:
        self.name, self.trace, self.act = name, trace, act

    def why_not(self, call) -> None:
        self.trace.append(self.name)

    def attend(self, call) -> torch.Tensor:
        return self.act(call)


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


def attach(model, name: str, kind: str, trace: list, act=lambda call: call.dense(), **kwargs):
    from interspatial.models import host

    return host.attach_attention(model, Card(name, kind), Traced(name, trace, act), **kwargs)


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
    assert host.report_of(model) == "ours saw no call: a node after it may have replaced ComfyUI's own hook"


# -------------------------------------------------------------------------------------------- one call, all layouts

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
    parts = lambda call: torch.cat([call.dense(part, call.k, call.v) for part in call.q.split(2, dim=1)], 1)   # noqa: E731
    torch.testing.assert_close(Offered(Traced("m", [], parts))(plain_attention, q, k, v, 3, skip_reshape=True), truth)


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
    offered = Offered(Traced("m", trace), previous=lambda func, *args, **kwargs: seen.append(args[:3]) or func(*args, **kwargs))
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


# -------------------------------------------------------------------------------------------- branches, windows, steps

@pytest.mark.parametrize(("batch", "rows"), [(1, [(1, 0, 1), (0, 1, 2)]), (2, [(1, 0, 2), (0, 2, 4)])])
def test_branches_are_the_rows_of_the_batch(base, batch, rows):
    """ComfyUI puts the negative prompt first when both fit into one batch."""
    found = set()

    def act(call):
        found.add(tuple((b.cond, b.rows.start, b.rows.stop) for b in call.branches))
        return call.dense()

    sample(attach(base, "ours", "sparse", [], act), TINY, cfg=3.0, batch=batch)
    assert found == {tuple(rows)}


@pytest.mark.parametrize(("window", "steps"), [
    (StepWindow(1, None, "steps"), {1, 2, 3}), (StepWindow(0.0, 0.3), {0, 1}), (StepWindow(0.3, 1.0), {2, 3})])
def test_step_windows_in_a_run(base, window, steps):
    """Four simple steps lie at 0, 25, 50 and 75 % of the noise range."""
    from interspatial.models import host

    class Inside:
        def why_not(self, call):
            inside = call.run.schedule.contains(window, call.forward.position)
            return None if inside else "outside the window"

        def attend(self, call):
            ran.add(call.forward.position.step)
            return call.dense()

    ran: set = set()
    model = host.attach_attention(base, Card("ours", "sparse"), Inside())
    sample(model, TINY, steps=4)
    assert ran == steps
    assert f"{len(steps)}/4 steps, unpatched: outside the window ({2 * (4 - len(steps))})" in host.report_of(model)


def test_step_method_may_run_or_replace_the_model(base, plain):
    from interspatial.models import host

    class Repeat:
        """Gives the last output of this prompt again in every second step."""

        def why_not(self, step):
            return None

        def evaluate(self, step):
            state = step.state(step.forward.branches[0], dict)
            if step.forward.position.step % 2 == 0:
                state["output"] = step.proceed()
            outputs.append(state["output"])
            return state["output"]

    outputs, trace = [], []
    model = host.attach_step(attach(base, "ours", "sparse", trace), Card("repeat", "cache"), Repeat())
    sample(model, TINY, steps=4)
    assert outputs[1] is outputs[0]
    assert outputs[3] is outputs[2]
    assert len(trace) == 2 * 2, "the attention method sees only the steps that ran"
    assert host.report_of(model) == "repeat 4/4 steps\nours 2/2 layers, 2/2 steps"


def test_step_method_that_stands_aside_changes_nothing(base, plain):
    from interspatial.models import host

    class Never:
        def why_not(self, step):
            return "never"

    model = host.attach_step(base, Card("never", "cache"), Never())
    assert torch.equal(sample(model, TINY, steps=1), plain)
    assert host.report_of(model) == "never 0/1 steps, unpatched: never (1)"


def test_step_methods_are_ordered_by_kind(base):
    from interspatial.models import host

    trace: list = []

    class Step:
        def __init__(self, name: str) -> None:
            self.name = name

        def why_not(self, step) -> str:
            trace.append(self.name)
            return "only looks"

    for kinds in (("cache", "window"), ("window", "cache")):
        trace.clear()
        model = base
        for kind in kinds:
            model = host.attach_step(model, Card(kind, kind), Step(kind))
        sample(model, TINY, steps=1)
        assert trace == ["window", "cache"]


# -------------------------------------------------------------------------------------------- services

def test_family_and_sampling_of_a_model(base):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from interspatial.models import host

    assert host.family_of_model(base).name == "wan"
    assert host.model_sampling(base).shift == 8.0
    assert host.model_sampling(ModelSamplingSD3().patch(base, 3.0)[0]).shift == 3.0


def test_check_interrupt(comfy):
    import comfy.model_management
    from interspatial.models import host

    host.check_interrupt()
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        host.check_interrupt()
    host.check_interrupt()


def test_progress_bar(comfy, monkeypatch):
    import comfy.utils
    from interspatial.models import host

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", True)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *args, **kwargs: seen.append((value, total)))
    show = host.progress_bar(8)
    show(2)
    show(8)
    assert seen == [(2, 8), (8, 8)]


def test_model_folder_keeps_what_the_user_configured(comfy, monkeypatch):
    import folder_paths
    from interspatial.models import host

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths["plans"] = (["/user/plans"], {".json"})
    for _ in range(2):
        host.add_model_folder("plans", {".safetensors"})
    paths, extensions = folder_paths.folder_names_and_paths["plans"]
    assert paths[0] == "/user/plans"
    assert len(paths) == 2
    assert extensions == {".json", ".safetensors"}


def test_summary_reaches_the_node(base, monkeypatch):
    import sys
    from types import ModuleType, SimpleNamespace

    from interspatial.models import host

    sent, server = [], ModuleType("server")
    server.PromptServer = SimpleNamespace(instance=SimpleNamespace(
        send_progress_text=lambda text, node_id: sent.append((node_id, text))))
    monkeypatch.setitem(sys.modules, "server", server)
    sample(attach(attach(base, "one", "sparse", [], node_id="12"), "two", "sparse", []), TINY, steps=1)
    assert sent == [("12", "one 2/2 layers, 1/1 steps")]

    def broken(text, node_id):
        raise ConnectionError("closed")

    server.PromptServer.instance.send_progress_text = broken
    host.show_text("text", "12")
    monkeypatch.delitem(sys.modules, "server")
    host.show_text("text", "12")


def test_comfyui_has_the_text_message(comfy):
    """Our text on a node goes through this method of ComfyUI's server."""
    source = (comfy / "server.py").read_text()
    assert "def send_progress_text" in source
