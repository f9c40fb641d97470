"""Heads that change from step to step, under every sparse attention method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.dynamic.router_file import RouterFile
from interspatial.models.dynamic.routers import Affine, BlockRouter
from interspatial.models.report import Card
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME, sample
from interspatial.tests.models.tiny_dits import wan

TINY = replace(BY_NAME["wan"], model=lambda: wan(dim=384, num_heads=3))


def later(model) -> RouterFile:
    """Routers that drop the second head at low noise, and the third as well at the end."""
    from interspatial.models.dynamic import wan as executor

    network = model.get_model_object("diffusion_model")
    first, last = executor.embeddings(network, (0.9, 0.2), torch.device("cpu"))
    way = (last - first) / (last - first).square().sum()   # 0 at sigma 0.9, 1 at 0.2
    weight, start = torch.stack((-way, -way)), (way @ first).item()
    return RouterFile("dydit", (BlockRouter(Affine(weight, torch.tensor([start + 0.3, start + 0.8]))),) * 2)


REMEMBER = ("adaspa", "svg2")


@pytest.mark.parametrize(("name", "target"), [
    ("draft", None), ("draft", 0.2), ("radial", None), ("svg1", None), ("adaspa", None), ("svg2", None), ("svg2", 0.2)])
def test_method(comfy, name, target):
    from interspatial.models import host
    from interspatial.models.attention import METHODS, Blocks, ErrorTarget, SparseAttention, When
    from interspatial.models.dynamic.dynamic_model import DynamicModel

    model, target = TINY.model(), target and ErrorTarget(target)
    sparse = SparseAttention(METHODS[name](density=0.5), When(), Blocks("tile", 2), target=target)
    model = host.attach_attention(model, Card("sparse", "sparse"), sparse)
    model = host.attach_step(model, Card("dynamic", "dynamic"), DynamicModel(later(model)))
    assert sample(model, TINY, steps=6, cfg=3.0).isfinite().all()
    report = host.report_of(model)
    assert "sparse 2/2 layers, 6/6 steps" in report
    assert ("all heads for sparse, which keeps something for each" in report) == (name in REMEMBER)
    assert ("dynamic 6/6 steps, heads 100 %" in report) == (name in REMEMBER)


def test_what_measures_attention_sees_all_heads(comfy):
    from interspatial.models import host
    from interspatial.models.dynamic.dynamic_model import DynamicModel

    heads: list = []
    model = attach(TINY.model(), "meter", "measure", [], lambda call: (heads.append(call.q.shape[2]), call.dense())[1])
    model = host.attach_step(model, Card("dynamic", "dynamic"), DynamicModel(later(model)))
    sample(model, TINY, steps=6)
    assert set(heads) == {3}
