"""What one evaluation keeps reaches no other branch, window or run, and nobody writes into it."""

from __future__ import annotations

import gc
import weakref
from itertools import cycle

import pytest
import torch
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.reuse import Reuse
from interspatial.models.cache.sites import SITES
from interspatial.models.cache.step_cache import StepCache
from interspatial.tests.models.cache.sites_of import Twice, at_site, attached, report
from interspatial.tests.models.tinies import BY_NAME, sample

WAN = BY_NAME["wan"]


class Looks:
    """Looks at every evaluation with `look`, which may raise."""

    def __init__(self, look) -> None:
        self.look = look

    def why_not(self, step) -> str:
        self.look(step)
        return "only looks"


class Written(Twice):
    """After two forecasts in a row everything that is kept is what it was."""

    def evaluate(self, step) -> torch.Tensor:
        answer = super().evaluate(step)
        job = self.cache.job(step)
        kept = [part for track in job.ledger.tracks for entry in track.entries for part in entry]
        before = [part.clone() for part in kept]
        self.pairs.append((answer.clone(), SITES[self.site].replay(job, self.cache.method.weigh)))
        assert before
        assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
        return answer


@pytest.mark.parametrize("site", ["last block", "modules"])
@pytest.mark.parametrize("name", ["wan_vace", "wan_s2v", "hunyuan_video", "ltxv", "ltxav", "cosmos", "minimax_h3"])
def test_models_that_write_into_their_hidden_states_reach_no_history(comfy, name, site):
    written = Written(site)
    sample(attached(BY_NAME[name].model(), written), BY_NAME[name])
    assert bool(written.pairs) != bool(written.refused)
    for answer, forecast in written.pairs:
        assert torch.equal(forecast, answer)


@pytest.fixture
def memory(comfy, monkeypatch):
    """Says how many bytes seem free, for each sampler call in turn: without any, prompts run one after the other."""
    from comfy.model_patcher import ModelPatcher

    def of(*amounts: float) -> None:
        turns = cycle(amounts)
        monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: next(turns))

    return of


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["wan_odd", "hunyuan_video", "ltxv", "cosmos", "qwen_image", "cogvideox"])
def test_prompts_together_apart_or_both_in_turn_give_the_same(memory, name, site):
    tiny, batches = BY_NAME[name], []
    looks = Looks(lambda step: batches.append(len(step.forward.branches)))
    model = attached(at_site(tiny.model(), site, 2), looks, "measure")
    found = []
    for amounts in ((1e12,), (0.0,), (1e12, 0.0, 0.0), (0.0, 0.0, 1e12)):
        memory(*amounts)
        batches.clear()
        found.append(sample(model, tiny, steps=6, cfg=3.0))
        assert set(batches) == {1 if len(amounts) == 1 and not amounts[0] else 2} | ({1} if 0.0 in amounts else set())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-5 * float(found[0].abs().max()))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_prompts_of_unequal_length(memory, name, site):
    """Wan runs them apart; CogVideoX repeats both texts where they run together, so their rows are more than alone."""
    tiny = BY_NAME[name]
    prompts = (tiny.prompt(1, 6), tiny.prompt(2, 9))
    for amounts in ((1e12,), (1e12, 0.0, 0.0)):
        memory(*amounts)
        plain = sample(tiny.model(), tiny, steps=4, cfg=3.0, prompts=prompts)
        memory(*amounts)
        assert torch.equal(sample(at_site(tiny.model(), site, 1), tiny, steps=4, cfg=3.0, prompts=prompts), plain)
        memory(*amounts)
        assert sample(at_site(tiny.model(), site, 2), tiny, steps=6, cfg=3.0, prompts=prompts).isfinite().all()


@pytest.mark.parametrize("site", ["output", "last block"])
def test_context_windows_never_mix(comfy, monkeypatch, site):
    """A model that answers with the first frame of its window: a forecast from any other window would show."""
    import comfy.context_windows as windows
    from comfy.ldm.wan.model import Head, WanAttentionBlock
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    def forward(self, x, e, freqs, context, context_img_len=257, transformer_options=None):
        first = transformer_options["context_window"].index_list[0]
        return torch.arange(x.shape[-1]).sin() * (1 + first) + torch.zeros_like(x)

    monkeypatch.setattr(WanAttentionBlock, "forward", forward)
    monkeypatch.setattr(Head, "forward", lambda self, x, e: self.head(x))   # by no time, and by size
    model = ContextWindowsManualNode.execute(
        WAN.model(), 4, 1, windows.ContextSchedules.STATIC_STANDARD, 1, False, windows.ContextFuseMethods.PYRAMID, 2,
        False).result[0]
    latent, seen = torch.zeros(1, 16, 9, 8, 8), set()
    plain = sample(model, WAN, steps=5, cfg=3.0, latent=latent)
    looks = Looks(lambda step: seen.add(step.forward.window))
    cached = attached(at_site(model, site, 2), looks, "measure")
    found = sample(cached, WAN, steps=5, cfg=3.0, latent=latent)
    assert len(seen) == 3
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert f"model calls {3 * 3} of {3 * 5}" in report(cached)


class StoppedError(Exception):
    """As when the user stops a run."""


@pytest.mark.parametrize("site", SITES)
def test_a_run_after_any_other_is_as_if_it_were_the_first(comfy, site):
    """Interrupted in step 3 while a forecast is made, failed in the model, of another shape, with other prompts."""
    def stop(step) -> None:
        if stopping and step.run.step == 3:
            raise StoppedError

    stopping: list[bool] = []
    fresh = sample(at_site(WAN.model(), site, 2), WAN, steps=6, cfg=3.0)
    model = attached(attached(at_site(WAN.model(), site, 2), Looks(stop), "sparse"), Looks(stop), "measure")
    assert torch.equal(sample(model, WAN, steps=6, cfg=3.0), fresh)
    stopping.append(True)
    with pytest.raises(StoppedError):
        sample(model, WAN, steps=6, cfg=3.0)
    stopping.clear()
    assert torch.equal(sample(model, WAN, steps=6, cfg=3.0), fresh)
    with pytest.raises(RuntimeError):
        sample(model, WAN, steps=6, cfg=3.0, prompts=([[torch.zeros(1, 7, 5), {}]], WAN.prompt(2)))
    sample(model, WAN, steps=4, latent=torch.zeros(2, 16, 2, 10, 6), prompts=(WAN.prompt(5, 9), WAN.prompt(6)))
    assert torch.equal(sample(model, WAN, steps=6, cfg=3.0), fresh)
    assert torch.equal(sample(WAN.model(), WAN), sample(WAN.model(), WAN)), "the model that came in is as it was"


@pytest.mark.parametrize("ends", ["well", "interrupted"])
@pytest.mark.parametrize("site", SITES)
def test_no_tensor_outlives_the_run(comfy, site, ends):
    def look(step) -> None:
        if step.run.step != 3:
            return
        tracks = cache.job(step).ledger.tracks
        kept.extend(weakref.ref(part) for track in tracks for entry in track.entries for part in entry)
        if ends == "interrupted":
            raise StoppedError

    kept: list[weakref.ref] = []
    cache = StepCache(Reuse(), Fixed(2), 2, 0, site)
    looking = Looking(cache, look)
    model = attached(WAN.model(), looking)
    try:
        sample(model, WAN, steps=5, cfg=3.0)
    except StoppedError:
        assert ends == "interrupted"
    gc.collect()
    assert kept
    assert all(ref() is None for ref in kept)


class Looking:
    """A cache that is looked at before it evaluates."""

    def __init__(self, cache: StepCache, look) -> None:
        self.cache, self.look = cache, look

    def why_not(self, step) -> str | None:
        return self.cache.why_not(step)

    def evaluate(self, step) -> torch.Tensor:
        self.look(step)
        return self.cache.evaluate(step)


@pytest.mark.parametrize("inner", SITES)
@pytest.mark.parametrize("outer", SITES)
def test_two_caches_on_one_model(comfy, outer, inner):
    plain = sample(WAN.model(), WAN, steps=4, cfg=3.0)
    both = at_site(at_site(WAN.model(), inner, 1), outer, 1)
    assert torch.equal(sample(both, WAN, steps=4, cfg=3.0), plain)
    both = at_site(at_site(WAN.model(), inner, 3), outer, 2)
    assert sample(both, WAN, steps=8, cfg=3.0).isfinite().all()
    lines = report(both).splitlines()
    assert "model calls" in lines[0]
    assert "model calls" in lines[1]
    assert torch.equal(sample(WAN.model(), WAN, steps=4, cfg=3.0), plain)
