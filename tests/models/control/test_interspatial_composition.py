"""Control together with context windows, step caches and sparse attention, on the tiny Wan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.cache.taylorseer import TaylorSeer
from interspatial.models.report import Card
from interspatial.tests.models.control.made import Held, config_for, controlled, hold, random_body, random_network
from interspatial.tests.models.tinies import BY_NAME, sample

WAN = BY_NAME["wan"]


@pytest.fixture(scope="module")
def wan_adapter(comfy):
    return Held(random_network(config_for("wan")))


def report(model) -> str:
    from interspatial.models import host

    return host.report_of(model).splitlines()[0]


def test_6_context_windows_see_the_frames_that_they_hold(comfy, wan_adapter):
    """What a window is given is the slice of the whole clip, numbers of frames included."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode
    from interspatial.models.control.interspatial import InterspatialControl

    seen = {}
    tiny = replace(WAN, latent=(1, 16, 7, 8, 12))
    body, camera = random_body(frames=25), hold(25)
    control = InterspatialControl(wan_adapter, body, camera)
    make = InterspatialControl._memory

    def memory(self, step, clip):
        found = make(self, step, clip)
        seen[step.forward.window] = found
        return found

    InterspatialControl._memory = memory
    try:
        from interspatial.models import host

        whole = host.attach_step(tiny.model(), Card("control", "control"), control)
        sample(whole, tiny, steps=1)
        windows = ContextWindowsManualNode.execute(whole, 3, 1, "standard_static", 1, False, "flat", 2, False).result[0]
        found = sample(windows, tiny, steps=1)
        assert report(windows).startswith("control 1/1 steps, points"), "no window stands aside"
    finally:
        InterspatialControl._memory = make
    assert found.isfinite().all()
    assert len(seen) > 2
    full = seen.pop(None)
    for window, cut in seen.items():
        frames = [*range(window[0] - 1, window[0]), *window] if window[0] else list(window)
        assert cut.numbers.tolist() == frames, "with the frame that ComfyUI puts in front"
        assert torch.equal(cut.fixed.y, full.fixed.y[:, frames])
        assert torch.equal(cut.fixed.usable, full.fixed.usable[:, frames])


@pytest.mark.parametrize("site", ["output", "last block", "modules"])
def test_step_caches_hold_what_it_adds(comfy, wan_adapter, site):
    """Interval 1 is bit-equal; with forecasts the control is still in the video."""
    from interspatial.models import host

    def cached(model, interval):
        cache = StepCache(TaylorSeer(), Fixed(interval), 2, 0, site=site)
        return host.attach_step(model, Card("cache", "cache", skips="steps"), cache)

    plain = sample(WAN.model(), WAN, steps=8)
    wanted = sample(controlled(WAN.model(), wan_adapter), WAN, steps=8)
    assert torch.equal(sample(controlled(cached(WAN.model(), 1), wan_adapter), WAN, steps=8), wanted)
    found = sample(controlled(cached(WAN.model(), 2), wan_adapter), WAN, steps=8)
    off, effect = (found - wanted).norm(), (wanted - plain).norm()
    assert off > 0, "some steps were forecast"
    assert off < 0.5 * effect  # random weights do not forecast well: 0.29 at the output, 0.1 at the others


@pytest.mark.parametrize("method", ["first_block", "delta_dit"])
def test_caches_that_go_around_blocks(comfy, wan_adapter, method):
    from interspatial.models import host
    from interspatial.models.cache import CACHES

    plain = sample(WAN.model(), WAN, steps=8)
    wanted = sample(controlled(WAN.model(), wan_adapter), WAN, steps=8)
    cache = StepCache(CACHES[method](), Fixed(2), 2, 0)
    model = host.attach_step(controlled(WAN.model(), wan_adapter), Card("cache", "cache", skips="steps"), cache)
    off = (sample(model, WAN, steps=8) - wanted).norm()
    assert off < 0.25 * (wanted - plain).norm()


def test_sparse_attention_beneath_it(comfy, wan_adapter):
    """With all blocks kept the sparse node is dense attention, and the adapter's own attention is none of its calls."""
    from interspatial.models import host
    from interspatial.models.attention import METHODS, SparseAttention

    wanted = sample(controlled(WAN.model(), wan_adapter), WAN)
    sparse = SparseAttention(METHODS["draft"](density=1.0))
    model = host.attach_attention(controlled(WAN.model(), wan_adapter), Card("sparse", "sparse"), sparse)
    torch.testing.assert_close(sample(model, WAN), wanted, rtol=1e-4, atol=1e-4)
    assert "sparse 2/2 layers, 2/2 steps" in host.report_of(model)
