"""No method waits for the device to plan a step like the one before; what is read at all is read once an evaluation.

The first steps run on the CPU, where tables of a run are made. Then all that the run keeps is moved to the meta device,
whose values cannot be read, and one more step is planned there.
"""

from __future__ import annotations

import copy
from dataclasses import is_dataclass, replace

import pytest
import torch
from interspatial.kernels.block_plan import BlockPlan, check_plan, kept_mask
from interspatial.models.attention import METHODS
from interspatial.models.attention.job import Job
from interspatial.models.attention.looks import REASON
from interspatial.models.attention.parked import Parked
from interspatial.models.attention.patterns import HEADS
from interspatial.models.attention.sparse import SparseAttention
from interspatial.models.attention.when import When
from interspatial.models.call import AttentionCall
from interspatial.models.run import Run
from interspatial.tests.models.attention.contract import MIXED, TILES, call_of, new_run
from interspatial.tests.models.attention.pattern_tables import table_of
from interspatial.tests.no_waits import no_waits

pytestmark = pytest.mark.usefixtures("poisoned")

WAYS = [
    ("adaspa", {}),
    ("attention_tile", {}),
    ("attention_tile", {"density": 0.0, "reference_frames": 2}),
    ("draft", {}),
    ("draft", {"proxy": "jensen", "neighbours": True}),
    ("draft", {"ranking": "whole head", "neighbours": True}),
    ("radial", {}),
    ("radial", {"density": 0.0}),
    ("rettention", {}),
    ("rettention", {"mask": "window", "residual": "per block"}),
    ("sparse_vdit", {"density": 0.0}),
    ("svg1", {}),
    ("svg2", {}),
    ("svg2", {"density": 0.0, "top_p": 0.5}),
    ("threshold", {}),
    ("threshold", {"density": 0.0}),
]
each_way = pytest.mark.parametrize(("name", "settings"), WAYS, ids=str)


def method_of(name: str, settings: dict):
    more = {"pattern": table_of(bins=1, patterns=HEADS)} if name == "sparse_vdit" else {}
    return METHODS[name](**{"density": 0.3} | settings | more)


def on_meta(thing):
    """A copy of anything a run keeps, with its tensors there."""
    if isinstance(thing, torch.Tensor):
        return thing.to("meta")
    if thing == torch.device("cpu"):
        return torch.device("meta")
    if isinstance(thing, dict):
        return {key: on_meta(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing)(on_meta(one) for one in thing)
    if is_dataclass(thing) or isinstance(thing, Parked):
        moved = copy.copy(thing)
        for name, value in vars(thing).items():
            object.__setattr__(moved, name, on_meta(value))
        return moved
    return thing


def move(run: Run, *calls: AttentionCall) -> list[AttentionCall]:
    """The run goes on there, and these calls of it are made there."""
    states = run._states.items()
    run._states = {tuple("meta" if x == "cpu" else x for x in key): on_meta(value) for key, value in states}
    bias = calls[0].mask.to("meta")
    return [replace(call, **{name: getattr(call, name).to("meta") for name in "qkv"}, mask=bias) for call in calls]


def calls_of(run: Run, layers: int = 1) -> list[AttentionCall]:
    bias = torch.zeros(2, MIXED.tokens)
    bias[0, 50:90] = -torch.inf
    return [call_of(MIXED, run=run, layer=layer, bias=bias) for layer in range(layers)]


@each_way
def test_a_step_like_the_one_before(name, settings, monkeypatch):
    method, run = method_of(name, settings), new_run()
    density = method.density or None
    for sigma in (1.0, 0.75):
        run.begin_call(sigma)
        for call in calls_of(run):
            method.attend(Job(call, TILES, "row", density))
    run.begin_call(0.5)
    plans = []

    def kernel(job: Job, plan: BlockPlan, **_) -> torch.Tensor:
        plans.append(plan)
        return job.call.q

    monkeypatch.setattr(Job, "run", kernel)
    (call,) = move(run, *calls_of(run))
    with no_waits():
        method.attend(Job(call, TILES, "row", density))
    assert len(plans) == 1 and not plans[0].sees_everything


def test_every_method_is_there():
    assert {name for name, _ in WAYS} == set(METHODS)


@each_way
def test_what_is_not_finite_gives_a_plan_like_any_other(name, settings):
    """In a later layer nobody looks: then lists must be sound, and the kernel must end."""
    method, run = method_of(name, settings), new_run()
    for sigma in (1.0, 0.75):
        run.begin_call(sigma)
        (call,) = calls_of(run)
        call.q[0, 40:60], call.k[1, 70:75], call.v[0, 3] = torch.nan, torch.inf, torch.nan
        job = Job(call, TILES, "row", method.density or None)
        method.attend(job)
    check_plan(job.used, MIXED.tokens, MIXED.tokens)
    text = kept_mask(job.used)[..., : job.order.video[0]].all(-1)
    assert (text | (job.used.q_live == 0)).all()  # clusters may leave a block of queries empty


def looked(sparse: SparseAttention, call: AttentionCall) -> list[str | None]:
    """Whether a wait is seen, and what the patch says."""
    try:
        with no_waits():
            return [False, sparse.why_not(call)]
    except AssertionError:
        return [True, None]


def test_inputs_are_looked_at_once_an_evaluation():
    run, sparse = new_run(), SparseAttention(METHODS["draft"](0.3))
    first, second = calls_of(run, 2)
    assert sparse.why_not(first) is None and sparse.why_not(second) is None
    there = move(run, first, second)
    run.begin_call(0.75)
    assert [looked(sparse, call)[0] for call in there] == [True, False]
    assert looked(sparse, there[0])[0], "the layers begin again, though the sampler told nothing"


def test_all_layers_of_an_evaluation_that_began_badly_are_looked_at():
    run, sparse = new_run(), SparseAttention(METHODS["draft"](0.3))
    first, second, third = calls_of(run, 3)
    first.v[1, 5] = torch.nan
    second.k[0, 7, 1] = torch.inf
    assert [sparse.why_not(call) for call in (first, second, third)] == [REASON, REASON, None]
    run.begin_call(0.75)
    assert [sparse.why_not(call) for call in (second, third)] == [REASON, None]


def test_shares_are_read_with_the_inputs():
    """A rule of its own keeps another share in each call: one in four steps is read, and not in the call itself."""
    run, sparse = new_run(), SparseAttention(METHODS["threshold"](0.0), When(first=0))
    for step in range(10):
        run.begin_call(1.0)
        run.position = replace(run.position, step=step, steps=10)
        for call in calls_of(run, 2):
            assert sparse.why_not(call) is None
            sparse.attend(call)
        counted = call.tally.numbers["kept"][1]
        assert counted == {4: 8, 8: 16}.get(step, 2 * (step + 1)), step
    assert 0.0 < call.tally.mean("kept") < 1.0
