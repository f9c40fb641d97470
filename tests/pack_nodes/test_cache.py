"""Step Cache as a node."""

from __future__ import annotations

import pytest
import torch

FIXED = {"schedule": "fixed", "interval": 2}


@pytest.fixture
def node(comfy):
    from interspatial.nodes import cache

    return cache


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan"]


def cached(node, model, method="reuse", schedule=FIXED, **settings):
    settings = {"first_steps": 2, "last_steps": 1, **settings}
    return node.StepCacheNode.execute(model, {"method": method}, dict(schedule), **settings).args[0]


def test_patches_a_clone_and_reports(node, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    plain = sample(model, tiny, steps=6)
    patched = cached(node, model)
    changed = sample(patched, tiny, steps=6)
    assert not torch.equal(changed, plain)
    assert torch.equal(sample(model, tiny, steps=6), plain)
    assert "model calls 4 of 6" in host.report_of(patched)      # steps 0, 1, then 3, and the last one


def test_interval_one_is_bit_equal(node, tiny):
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    patched = cached(node, model, schedule={"schedule": "fixed", "interval": 1})
    assert torch.equal(sample(patched, tiny, steps=4), sample(model, tiny, steps=4))


def test_the_preset_leaves_few_steps_alone_and_says_why(node, tiny):
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    patched = cached(node, model, schedule={"schedule": "preset"}, first_steps=-1, last_steps=-1)
    assert torch.equal(sample(patched, tiny, steps=4), sample(model, tiny, steps=4))
    assert "a schedule of 4 steps has strides too long to forecast over" in host.report_of(patched)


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_core_caches_are_refused_by_name(node, tiny, kind):
    import comfy_extras.nodes_easycache as core

    model = getattr(core, f"{kind}Node").execute(tiny.model(), 0.2, 0.15, 0.95, False).args[0]
    with pytest.raises(ValueError, match=f"Step Cache: the model already has {kind} on it.*Remove {kind}"):
        cached(node, model)


def test_a_core_cache_wired_behind_makes_it_stand_aside(node, tiny):
    import comfy_extras.nodes_easycache as core
    from interspatial.models import host
    from interspatial.tests.models.tinies import sample

    model = core.EasyCacheNode.execute(cached(node, tiny.model()), 0.2, 0.15, 0.95, False).args[0]
    sample(model, tiny, steps=4)
    assert "0/4 steps" in host.report_of(model) and "EasyCache is on the model too" in host.report_of(model)


@pytest.mark.parametrize("method", ["taylorseer", "spectrum", "reuse", "delta_dit", "first_block"])
@pytest.mark.parametrize("schedule", ["preset", "fixed", "growing", "seacache"])
def test_every_choice_runs_with_its_defaults(node, tiny, method, schedule):
    """The schema's defaults make a cache for each pair of choices."""
    from interspatial.models.cache import CACHES, PACES

    config = node.step_cache({"method": method}, {"schedule": schedule})
    assert isinstance(config.method, CACHES[method])
    assert config.pace is None if schedule == "preset" else isinstance(config.pace, PACES[schedule])
    assert (config.first, config.last, config.site) == (None, None, None)
