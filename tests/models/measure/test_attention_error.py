"""The meter in real runs of tiny models: it changes nothing, and its figures are those of float64 on the same calls."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH is not set", allow_module_level=True)

from interspatial.kernels.block_plan import BlockPlan, kept_lists, kept_mask
from interspatial.models import host
from interspatial.models.attention import METHODS, Blocks, Method, SparseAttention
from interspatial.models.measure import error_table
from interspatial.models.measure.attention_error import MODEL, AttentionMeter, Findings, Place, _layers, _steps
from interspatial.models.measure.candidates import (
    Candidate,
    candidates,
    middle_density,
    parse_densities,
    parse_methods,
)
from interspatial.models.report import Card
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, noise, sample

SMALL = Blocks("tile", 2)
WAN, ODD, HUNYUAN = (BY_NAME[name] for name in ("wan", "wan_odd", "hunyuan_video"))
ALL_ROWS = 100_000


@dataclass(frozen=True)
class Stripes(Method):
    """Each query block keeps itself and every third block: a plan that needs no scores."""

    label: ClassVar[str] = "Stripes"
    summary: ClassVar[str] = "keeps every third block"

    def plan(self, job) -> BlockPlan:
        order, blocks = job.order, job.order.slots.shape[1]
        keep = torch.eye(blocks, dtype=torch.bool)
        keep[:, ::3] = True
        first, last = order.video
        keep[:, :first] = keep[:, last:] = True
        cols, counts = kept_lists(keep[None])
        return BlockPlan(order.slots, order.slots, order.live, order.live, cols, counts, order.other)


@dataclass(frozen=True)
class Counting(Method):
    """Remembers how often it was called, and notes it."""

    seen: list | None = None

    label: ClassVar[str] = "Counting"
    summary: ClassVar[str] = "counts"
    remembers: ClassVar[bool] = True

    def attend(self, job) -> torch.Tensor:
        branch, = job.call.branches
        count = job.call.state(branch, lambda: [0])
        count[0] += 1
        self.seen.append((job.density, job.call.forward.position.step, job.call.layer, count[0]))
        return job.call.dense()

    def __hash__(self) -> int:
        return id(self.seen)


def meter(*tried: Candidate, rows: int = ALL_ROWS, steps: int = 0, layers: int = 0, **more) -> AttentionMeter:
    return AttentionMeter(tried, Findings(), steps, layers, rows, **more)


def measured(model, watch: AttentionMeter):
    return host.attach_attention(model, Card("meter", "measure"), watch)


def draft(*densities: float, tail="row") -> tuple[Candidate, ...]:
    return candidates(("draft",), densities, SMALL, tail)


def stripes(tail=None) -> Candidate:
    return Candidate("stripes", 0.5, SparseAttention(Stripes(), blocks=SMALL, tail=tail))


def of(watch: AttentionMeter, name: str) -> list:
    return [record for record in watch.found.records if record.name == name]


# ------------------------------------------------------------------------------------------------------------- the run

@pytest.mark.parametrize("tiny", [ODD, HUNYUAN], ids=lambda tiny: tiny.name)
def test_the_run_is_bit_equal_and_everything_kept_is_no_error(comfy, tiny):
    model = tiny.model()
    plain = sample(model, tiny, cfg=3.0)
    watch = meter(*draft(1.0, 0.4))
    watched = measured(model, watch)
    assert torch.equal(sample(watched, tiny, cfg=3.0), plain)
    full = [record for record in of(watch, "draft") if record.asked == 1.0]
    assert len(full) == 2 * len(tiny.layers)  # steps x layers; the negative prompt is not measured
    for record in full:
        assert max(record.errors) < 1e-5
        assert record.recall == pytest.approx(1, abs=1e-5)
        assert record.density == record.kept == 1
    for record in of(watch, "draft")[1::2]:
        assert record.asked == 0.4 and 1e-4 < record.error < 1 and record.recall < 0.99
        assert record.density == pytest.approx(0.4, abs=0.05)
    assert all(record.error < 1e-5 for record in of(watch, MODEL))


def truth(q, k, v, plan, scale=None):
    """Error and recall of each head in float64, dropped blocks dropped. q, k, v: [1, N, H, D]"""
    q, k, v = (x[0].double() for x in (q, k, v))
    keep, slots = kept_mask(plan)[0], plan.q_slots[0]
    block = torch.tensor([int((slots == token).any(1).nonzero()) for token in range(len(q))])
    seen = keep[block][:, block]
    errors, recalls = [], []
    video = plan_video(plan)
    for h in range(q.shape[1]):
        score = q[:, h] @ k[:, h].T * q.shape[-1] ** -0.5
        weight, kept = score.softmax(-1), score.masked_fill(~seen, -torch.inf).softmax(-1)
        exact, got = (weight @ v[:, h])[video], (kept @ v[:, h])[video]
        errors.append(float((got - exact).norm() / exact.norm()))
        recalls.append(float((weight * seen).sum(-1)[video].mean()))
    return errors, recalls


def plan_video(plan: BlockPlan) -> torch.Tensor:
    """Tokens of the query blocks that are not full."""
    full = {block for span in plan.full for block in range(*span)}
    slots = plan.q_slots[0, [i for i in range(plan.q_slots.shape[1]) if i not in full]]
    return slots[slots >= 0].long().sort().values


@pytest.mark.parametrize("tiny", [ODD, HUNYUAN], ids=lambda tiny: tiny.name)
def test_figures_are_those_of_float64_on_the_same_call(comfy, tiny):
    calls, jobs = [], []

    def act(call):
        calls.append((call.layer, call.q.clone(), call.k.clone(), call.v.clone()))
        return call.dense()

    @dataclass(frozen=True)
    class Kept(Stripes):
        def plan(self, job):
            jobs.append(super().plan(job))
            return jobs[-1]

    watch = meter(Candidate("stripes", 0.5, SparseAttention(Kept(), blocks=SMALL, tail=None)))
    sample(attach(measured(tiny.model(), watch), "probe", "quant", [], act), tiny, steps=1)
    for (layer, q, k, v), plan, record in zip(calls, jobs, of(watch, "stripes"), strict=True):
        errors, recalls = truth(q, k, v, plan)
        assert record.layer == layer
        assert record.errors == pytest.approx(errors, rel=1e-3)
        assert record.recalls == pytest.approx(recalls, rel=1e-4)
        keep, video = kept_mask(plan)[0].float(), slice(*plan_blocks(plan))
        assert record.density == pytest.approx(float(keep[video, video].mean()))
        live = plan.q_live[0].float()
        assert record.kept == pytest.approx(float(live @ keep @ live / live.sum() ** 2), rel=1e-5)


def plan_blocks(plan: BlockPlan) -> tuple[int, int]:
    """First and past the last query block that is not full; in these models they stand together."""
    ends = [0, *(edge for span in plan.full for edge in span), plan.q_slots.shape[1]]
    return max(zip(ends[::2], ends[1::2], strict=True), key=lambda span: span[1] - span[0])


def test_the_sample_of_rows_is_near_the_whole(comfy):
    some, every = meter(*draft(0.4), rows=24), meter(*draft(0.4))
    for watch in (some, every):
        sample(measured(WAN.model(), watch), WAN, steps=1)
    for a, b in zip(of(some, "draft"), of(every, "draft"), strict=True):
        assert a.error != b.error
        assert a.error == pytest.approx(b.error, rel=0.3)
        assert a.recall == pytest.approx(b.recall, abs=0.1)


def test_a_batch_and_its_mean_over_entries(comfy):
    watch = meter(*draft(0.4))
    sample(measured(WAN.model(), watch), WAN, steps=1, batch=2, prompts=(WAN.prompt(1), WAN.prompt(2)))
    assert len(of(watch, "draft")) == 2
    assert all(len(record.errors) == watch.found.heads for record in watch.found.records)


@pytest.mark.parametrize("tokens", [5, 9])
def test_the_negative_prompt_does_not_count_batched_or_apart(comfy, tokens):
    """Prompts of unequal length run apart. The calls of the first step do not depend on guidance yet."""
    watch = meter(*draft(0.4))
    prompt = WAN.prompt(1, 5)
    sample(measured(WAN.model(), watch), WAN, steps=1, cfg=1.0, prompts=(prompt, prompt))
    alone = [record.error for record in of(watch, "draft")]
    guided = meter(*draft(0.4))
    sample(measured(WAN.model(), guided), WAN, steps=1, cfg=3.0, prompts=(prompt, WAN.prompt(2, tokens)))
    assert [record.error for record in of(guided, "draft")] == pytest.approx(alone, rel=1e-4)


# -------------------------------------------------------------------------------------------------- patches underneath

def test_sparse_patches_below_are_measured_as_they_run(comfy):
    """What the model itself does is the candidate with the settings of its patch, in the first call to the digit."""
    candidate, = draft(0.4)
    watch = meter(candidate)
    patched = host.attach_attention(WAN.model(), Card("sparse", "sparse"), replace(candidate.sparse, method=METHODS[
        "draft"](density=0.4)))  # fmt: skip
    plain = sample(patched, WAN)
    watched = measured(patched, watch)
    assert torch.equal(sample(watched, WAN), plain)
    for own, tried in zip(of(watch, MODEL), of(watch, "draft"), strict=True):
        assert own.error > 1e-4
        assert own.errors == pytest.approx(tried.errors, rel=1e-4)
    assert host.report_of(watched).splitlines()[1].startswith("sparse 2/2 layers, 2/2 steps")


def test_dense_for_a_candidate_is_dense_on_a_patched_model_too(comfy):
    seen, trace = [], []
    watch = meter(Candidate("counting", 0.5, SparseAttention(Counting(seen=seen), blocks=SMALL)))
    patched = host.attach_attention(WAN.model(), Card("sparse", "sparse"), draft(0.2)[0].sparse)
    sample(measured(attach(patched, "probe", "quant", trace), watch), WAN)
    assert all(record.error < 1e-5 and record.recall == 1 for record in of(watch, "counting"))
    assert len(seen) == 4 and len(trace) == 0  # the sparse patch answers; the candidates ask no hook below


# ------------------------------------------------------------------------------------------------- where and what state

@pytest.mark.parametrize(
    ("count", "total", "steps", "layers"),
    [(3, 20, (3, 10, 16), (0, 10, 19)), (1, 6, (3,), (0,)), (9, 4, (0, 1, 2, 3), (0, 1, 2, 3)), (0, 2, (0, 1), (0, 1)),
     (2, 1, (0,), (0,))],
)  # fmt: skip
def test_where_is_measured(count, total, steps, layers):
    assert _steps(count, total) == steps
    assert _layers(count, total) == layers


def test_only_some_steps_and_layers(comfy):
    watch = meter(*draft(0.4), steps=2, layers=1)
    sample(measured(HUNYUAN.model(), watch), HUNYUAN, steps=4)
    assert [(record.step, record.layer) for record in of(watch, "draft")] == [(1, 0), (3, 0)]


def test_who_remembers_sees_every_step_and_shares_nothing(comfy):
    seen = []
    counting = SparseAttention(Counting(seen=seen), blocks=SMALL)
    watch = meter(*(Candidate("counting", density, counting) for density in (0.5, 0.2)), steps=1, layers=1)
    sample(measured(WAN.model(), watch), WAN, steps=3, cfg=3.0)
    assert seen == [(density, step, 0, step + 1) for step in range(3) for density in (0.5, 0.2)]
    assert [record.step for record in of(watch, "counting")] == [1, 1]


def test_who_stands_aside_is_counted_with_the_reason(comfy):
    @dataclass(frozen=True)
    class Never(Stripes):
        def why_not(self, call):
            return "not today"

    watch = meter(Candidate("never", 0.5, SparseAttention(Never())), stripes())
    sample(measured(WAN.model(), watch), WAN)
    assert dict(watch.found.reasons) == {("never", "not today"): 4}
    assert not of(watch, "never") and len(of(watch, "stripes")) == 4


def test_the_interrupt_goes_through(comfy):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(measured(WAN.model(), meter(*draft(0.4), tick=stop)), WAN)


# -------------------------------------------------------------------------------------------------------------- looks

def test_looks_are_the_kept_blocks_of_the_query(comfy):
    """Every third block of 2 x 2 tokens and the own one, in 3 frames of 2 x 3 blocks."""
    watch = meter(stripes(), place=Place(0.99, 0.4, 0.5), shown=0.5)
    sample(measured(WAN.model(), watch), WAN)
    expected = torch.zeros(3, 2, 3)
    expected.view(-1)[::3] = 1
    expected[1, 0, 2] = 1  # frame 1 of 3, upper half, right edge
    found = torch.stack(watch.found.seen["stripes"])
    assert len(found) == 2  # layers, of one step
    assert torch.equal(found.mean(0).view(3, 4, 6), expected.repeat_interleave(2, 1).repeat_interleave(2, 2))
    query = torch.zeros(3, 4, 6, dtype=torch.bool)
    query[1, :2, 4:] = True
    assert torch.equal(watch.found.query, query)


def test_the_best_choice_has_most_mass_and_its_share_of_blocks(comfy):
    watch = meter(*draft(0.5), shown=0.5)
    sample(measured(WAN.model(), watch), WAN)
    best, chosen = (torch.stack(watch.found.seen[name]) for name in (None, "draft"))
    assert best.shape == chosen.shape == (2, 72)
    assert best.mean(1) == pytest.approx(0.5) and chosen.mean(1) == pytest.approx(0.5, abs=1 / 18)


@pytest.mark.parametrize(
    ("place", "cell"), [((0, 0, 0), (0, 0, 0)), ((1, 1, 1), (2, 3, 5)), ((0.5, 0.5, 0.5), (1, 2, 3))]
)
def test_places(place, cell):
    assert Place(*place).cell((3, 4, 6)) == cell
    assert Place(*place).token((3, 4, 6)) == (cell[0] * 4 + cell[1]) * 6 + cell[2]


# ------------------------------------------------------------------------------------------------------ words and lists

def test_the_table_is_the_mean_of_the_records(comfy):
    watch = meter(*draft(0.5, 0.3))
    sample(measured(WAN.model(), watch), WAN)
    model, half, less = error_table.rows_of(watch.found)
    assert (model.name, half.asked, less.asked) == (MODEL, 0.5, 0.3)
    records = [record for record in of(watch, "draft") if record.asked == 0.3]
    assert less.calls == len(records) == 4
    assert less.error == pytest.approx(sum(sum(r.errors) / len(r.errors) for r in records) / 4)
    assert less.worst == max(max(r.errors) for r in records)
    text = error_table.as_text([model, half, less])
    assert len({len(line) for line in text}) == 1 and f"{less.error:.4f}" in text[4]
    data = json.loads(error_table.as_json(watch.found))
    assert len(data["records"]) == 12 and data["records"][2]["errors"] == list(records[0].errors)
    assert data["grid"] == [3, 4, 6]


def test_names_as_people_write_them():
    assert parse_methods("all") == parse_methods(" ALL,") == tuple(METHODS)
    assert parse_methods("draft\nDraft") == ("draft",)
    for text in ("", "sol, draft"):
        with pytest.raises(ValueError, match=r"Methods: .*Accepted: all, or some of .*draft"):
            parse_methods(text)


def test_densities_as_people_write_them():
    assert parse_densities("0.5; .3, auto,0.5") == (0.5, 0.3, None)
    for text in ("", "0", "1.5", "half", "nan"):
        with pytest.raises(ValueError, match=r"Densities: .*Accepted: numbers above 0 and at most 1"):
            parse_densities(text)


def test_middle_density():
    assert middle_density((0.5, 0.3, 0.2, 0.1)) == 0.3
    assert middle_density((None, 0.2)) == 0.2
    assert middle_density((None,)) is None


def test_auto_is_the_preset_where_a_method_has_no_rule(comfy):
    watch = meter(*candidates(("draft",), (None,), SMALL, "row"))
    sample(measured(WAN.model(), watch), WAN, latent=noise(*WAN.latent))
    assert [record.density for record in of(watch, "draft")] == pytest.approx([0.35] * 4, abs=0.02)  # 2 steps: few
