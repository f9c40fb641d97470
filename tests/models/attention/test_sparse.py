"""Sparse attention through the real sampler: every family, any tail, and when it stays dense."""

from __future__ import annotations

import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH is not set", allow_module_level=True)

from interspatial.models import host
from interspatial.models.attention import METHODS, ORDERS, Blocks, SparseAttention, When, parse_layers
from interspatial.models.report import Card
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.tinies import TINIES, sample

SMALL = Blocks("tile", 2)
BY_NAME = {tiny.name: tiny for tiny in TINIES}
each_family = pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)


def attach(model, *, density=0.4, tail="row", blocks=SMALL, **when):
    method = SparseAttention(METHODS["draft"](density), When(**when), blocks, tail)
    return host.attach_attention(model, Card("sparse", "sparse"), method)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


@each_family
def test_density_one_is_dense_and_less_keeps_less(comfy, tiny):
    model = tiny.model()
    plain = sample(model, tiny)
    full = attach(model, density=1.0)
    assert apart(sample(full, tiny), plain) <= 1e-4
    assert f"{len(tiny.layers)}/{len(tiny.layers)} layers" in host.report_of(full)
    sparse = attach(model)
    out = sample(sparse, tiny)
    assert out.isfinite().all()
    assert apart(out, plain) > 0  # how far is for trained weights to say: bench/sparse_tail.py
    assert "kept" in host.report_of(sparse)


STEPS = {"rettention": 9}  # it refuses runs of 8 steps or fewer
SINGLE = ("minimax_h3", "hunyuan_video_masked")  # core itself takes no batch there
ASIDE = {
    "sparse_vdit": "no sparse pattern is connected",  # test_sparse_vdit.py has it run on families
    "attention_tile": "a single frame, which attention tiles keep whole",
}


@each_family
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_every_family(comfy, name, tiny):
    model = tiny.model()
    method = SparseAttention(METHODS[name](density=0.4), When(), SMALL)
    patched = host.attach_attention(model, Card("sparse", "sparse"), method)
    out = sample(patched, tiny, steps=STEPS.get(name, 2), batch=1 if tiny.name.startswith(SINGLE) else 2)
    assert out.isfinite().all()
    line = host.report_of(patched)
    if name in ASIDE and ASIDE[name] in line:
        return
    assert f"{len(tiny.layers)}/{len(tiny.layers)} layers" in line and "kept" in line, line


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tail", ["row", "block", None])
def test_every_order_and_tail_runs_with_two_prompts_and_a_batch(comfy, order, tail):
    tiny = BY_NAME["wan_odd"]
    model = tiny.model()
    prompts = (tiny.prompt(1, 5), tiny.prompt(2, 9))
    plain = sample(model, tiny, cfg=3.0, batch=2, prompts=prompts)
    patched = attach(model, tail=tail, blocks=Blocks(order, 2))
    out = sample(patched, tiny, cfg=3.0, batch=2, prompts=prompts)
    assert out.isfinite().all()
    assert 0 < apart(out, plain) < 0.2
    assert torch.equal(sample(patched, tiny, cfg=3.0, batch=2, prompts=prompts), out)


def test_the_base_model_stays_as_it_was(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    plain = sample(model, tiny)
    sample(attach(model), tiny)
    assert torch.equal(sample(model, tiny), plain)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"min_tokens": 1000}, "fewer than 1000 tokens"),
        ({"first": 1}, "a dense step by count"),
        ({"percent": StepWindow(0.9, 1.0)}, "outside the percent window"),
        ({"dense_layers": (0, -1)}, "a dense layer"),
    ],
)
def test_says_why_it_stays_dense(comfy, when, said):
    tiny = BY_NAME["wan"]
    model = attach(tiny.model(), **when)
    sample(model, tiny)
    assert said in host.report_of(model)


def test_all_steps_dense_is_bit_equal(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model()
    assert torch.equal(sample(attach(model, dense_layers=(0, 1)), tiny), sample(model, tiny))


def test_dense_layers_as_people_write_them():
    assert parse_layers("") == ()
    assert parse_layers("0-2, 5;-1") == (0, 1, 2, 5, -1)
    with pytest.raises(ValueError, match=r"'first' is not understood.*Accepted"):
        parse_layers("0, first")
