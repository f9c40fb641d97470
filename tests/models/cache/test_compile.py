"""A step cache with core's Torch Compile node: nothing is compiled anew from step to step, or it says why not."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.cache import step_cache
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.cache.taylorseer import TaylorSeer
from interspatial.tests.models.cache.sites_of import at_site, attached, report
from interspatial.tests.models.tinies import BY_NAME, sample
from interspatial.tests.models.tiny_dits import wan

WAN = BY_NAME["wan"]
COMPILED = "the model is compiled: its blocks cannot be skipped one by one, only whole evaluations"


@pytest.fixture
def compiled(comfy):
    """The node's patch with a backend that counts graphs in place of inductor."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    def patch(model):
        def backend(graph, inputs):
            graphs.append(len(graph.graph.nodes))
            return graph.forward

        graphs: list[int] = []
        model = model.clone()
        set_torch_compile_wrapper(model, backend, options={"guard_filter_fn": skip_torch_compile_dict})
        return model, graphs

    torch._dynamo.reset()
    yield patch
    torch._dynamo.reset()


@pytest.fixture
def marked(comfy):
    """A model with the wrapper of the node, and nothing compiled: to see the answers, without waiting for graphs."""
    from comfy.patcher_extension import WrappersMP

    model = WAN.model().clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda model, *args, **kw: model(*args, **kw))
    return model


def test_no_graph_is_added_by_more_steps(compiled):
    """Measured on Wan with two blocks: 23 graphs with the cache and without it, after 4 steps and after 8 more."""
    small = wan(num_layers=1)
    model, graphs = compiled(small)
    cached = at_site(model, "output", 2)
    sample(cached, WAN, steps=4)
    first = len(graphs)
    assert first > 0
    assert "model calls 3 of 4" in report(cached)
    assert sample(cached, WAN, steps=8).isfinite().all()
    assert "model calls 5 of 8" in report(cached)
    found = sample(at_site(model, "output", 1), WAN, steps=4)
    torch.testing.assert_close(found, sample(small, WAN, steps=4), rtol=0, atol=1e-5)
    assert len(graphs) == first


@pytest.mark.parametrize("site", ["last block", "modules"])
@pytest.mark.parametrize("cache_first", [True, False])
def test_blocks_of_a_compiled_model_are_left_alone(marked, site, cache_first):
    from comfy.patcher_extension import WrappersMP

    if cache_first:
        wrapper = marked.get_wrappers(WrappersMP.APPLY_MODEL, "torch.compile")[0]
        model = at_site(WAN.model(), site, 2).clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", wrapper)
    else:
        model = at_site(marked, site, 2)
    assert torch.equal(sample(model, WAN, steps=4), sample(WAN.model(), WAN, steps=4))
    assert f"cache 0/4 steps, unpatched: {COMPILED} (4)" in report(model)


def test_a_preset_that_names_a_block_site_takes_the_output(marked, monkeypatch):
    from dataclasses import replace

    of = step_cache.preset_of
    monkeypatch.setattr(step_cache, "preset_of", lambda *args: replace(of(*args), site="last block"))
    model = attached(marked, StepCache(TaylorSeer(1), Fixed(2), 2, 0))
    sample(model, WAN, steps=6)
    assert "model calls 4 of 6" in report(model)
    assert f"put back at output, not last block: {COMPILED}" in report(model)
