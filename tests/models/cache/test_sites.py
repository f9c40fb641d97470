"""Where forecasts are put back, on every tiny model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from interspatial.models.block_visits import visiting_blocks
from interspatial.models.cache import sites
from interspatial.models.cache.pace import Fixed
from interspatial.models.cache.step_cache import StepCache
from interspatial.models.cache.taylorseer import TaylorSeer
from interspatial.models.families import FAMILIES, Inputs
from interspatial.models.forward import Forward
from interspatial.tests.models.cache.blocks import block_runs, depth
from interspatial.tests.models.cache.sites_of import Twice, at_site, attached, report
from interspatial.tests.models.tinies import BY_NAME, TINIES, Tiny, clip_vision, noise, sample
from interspatial.tests.models.tiny_dits import wan

# Attention is written out in their blocks, their parts are nested, or video and sound have parts of their own.
NO_MODULES = {"hunyuan_video", "hunyuan_video_15", "hunyuan_image", "cogvideox", "ltxav", "cosmos", "flux",
              "interspatial"}  # frames, or places, are rows of their batch
WAN, SEEDVR2 = (next(family for family in FAMILIES if family.name == name) for name in ("wan", "seedvr2"))
BLOCK_SITES = ("last block", "modules")
HINTS_BEHIND = (   # something is added behind the last block, which must stay live
    Tiny("vace", "wan", lambda: wan("VaceWanModel", vace_layers=2, vace_in_dim=96), BY_NAME["wan_vace"].latent, (),
         cond=BY_NAME["wan_vace"].cond),
    Tiny("s2v", "wan_s2v", lambda: wan("WanModel_S2V", audio_inject_layers=(1,), audio_dim=64),
         BY_NAME["wan_s2v"].latent, (), cond=BY_NAME["wan_s2v"].cond),
    Tiny("dancer", "wan", lambda: wan("WanDancerModel", in_dim=36, audio_inject_layers=(1,)),
         BY_NAME["wan_dancer"].latent, (),
         cond=lambda: {"clip_vision_output": clip_vision(), "audio_embed": noise(1, 12, 35)}),
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(comfy):
    """The render without a cache, once for each tiny model."""
    found: dict[str, torch.Tensor] = {}

    def of(tiny: Tiny) -> torch.Tensor:
        if tiny.name not in found:
            found[tiny.name] = sample(tiny.model(), tiny)
        return found[tiny.name]

    return of


@pytest.mark.parametrize("site", sites.SITES)
@pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)
def test_interval_one_is_bit_equal(plain, tiny, site):
    model = at_site(tiny.model(), site, 1)
    assert torch.equal(sample(model, tiny), plain(tiny))
    refused = site == "modules" and tiny.family in NO_MODULES
    assert report(model).startswith(f"cache {0 if refused else 2}/2 steps")
    assert ("cannot be forecast by themselves" in report(model)) == refused


@pytest.mark.parametrize("site", BLOCK_SITES)
@pytest.mark.parametrize("tiny", [*TINIES, *HINTS_BEHIND], ids=lambda tiny: tiny.name)
def test_reuse_right_after_a_run_is_bit_equal(plain, tiny, site):
    """What the model adds between and behind its blocks is neither lost nor added twice, and writes into no history."""
    twice = Twice(site)
    model = attached(tiny.model(), twice)
    assert torch.equal(sample(model, tiny), plain(tiny)), "what was run is handed on untouched"
    assert (site == "modules" and tiny.family in NO_MODULES) == bool(twice.refused)
    for answer, forecast in twice.pairs:
        assert torch.equal(forecast, answer)
    assert len(twice.pairs) == (0 if twice.refused else 2)


@pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)
def test_output_gives_back_what_was_kept(comfy, tiny):
    twice = Twice("output")
    sample(attached(tiny.model(), twice), tiny)
    assert len(twice.pairs) == 2
    for (answer, forecast), scale in zip(twice.pairs, twice.scales, strict=True):
        torch.testing.assert_close(forecast, answer, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)
def test_a_forecast_at_the_last_block_runs_no_block(comfy, tiny):
    model = tiny.model()
    full = list(range(depth(model)))
    with block_runs(model) as forwards:
        sample(at_site(model, "last block", 2), tiny, steps=5)
    assert forwards == [full, full, [], full, []]


def test_modules_run_norms_and_gates_alone(comfy, monkeypatch):
    ran: list[str] = []
    from comfy.ldm.wan.model import WanSelfAttention

    attend = WanSelfAttention.forward
    monkeypatch.setattr(WanSelfAttention, "forward", lambda *args, **kw: ran.append("attention") or attend(*args, **kw))
    model = BY_NAME["wan"].model()
    with block_runs(model) as forwards:
        sample(at_site(model, "modules", 2), BY_NAME["wan"], steps=4)
    assert forwards == [[0, 1]] * 4
    assert len(ran) == 2 * 3, "two blocks in each of the three steps that ran"


class Control:
    """Adds what a control network would: an APPLY_MODEL wrapper that brings `control`."""

    def __init__(self, tokens: int, strength: float = 1.0) -> None:
        self.add = strength * noise(1, tokens, 128, seed=7)

    def __call__(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, options=None, **kwargs):
        return executor(x, t, c_concat, c_crossattn, {"input": [self.add] * 2, "output": [self.add] * 2}, options,
                        **kwargs)


@pytest.mark.parametrize(("name", "tokens"), [("hunyuan_video", 72), ("flux", 24), ("qwen_image", 24)])
def test_a_control_network_stays_live(comfy, name, tokens):
    from comfy.patcher_extension import WrappersMP

    tiny, twice = BY_NAME[name], Twice("last block")
    model = tiny.model().clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "control", Control(tokens))
    controlled = sample(attached(model, twice), tiny)
    assert all(torch.equal(*pair) for pair in twice.pairs)
    assert not torch.equal(controlled, sample(tiny.model(), tiny)), "the control does not show: this proves nothing"


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "ltxv", "mochi", "qwen_image"])
def test_block_patches_of_another_pack_are_called_as_ever(comfy, name):
    tiny, called = BY_NAME[name], []

    def patch(args, extra):
        called.append(len(called))
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.01}

    model = tiny.model().clone()
    model.set_model_patch_replace(patch, "dit", "double_block", 0)
    patched, runs = sample(model, tiny, steps=3), len(called)
    assert torch.equal(sample(at_site(model, "last block", 1), tiny, steps=3), patched)
    assert len(called) == 2 * runs
    twice = Twice("last block")
    sample(attached(model, twice), tiny)
    assert all(torch.equal(*pair) for pair in twice.pairs)


def test_a_last_block_that_another_patch_takes_is_never_forecast(comfy):
    tiny = BY_NAME["wan"]
    model = tiny.model().clone()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    cached = at_site(model, "last block", 2)
    assert torch.equal(sample(cached, tiny, steps=4), sample(model, tiny, steps=4))
    assert "model calls 4 of 4" in report(cached)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"family": None}, "the blocks of a model that this pack does not know cannot be skipped"),
    ({"compiled": True}, "the model is compiled: its blocks cannot be skipped one by one, only whole evaluations"),
    ({"family": SEEDVR2}, "the blocks of seedvr2 cannot be skipped"),
    ({"whole": "it is so"}, "it is so"),
    ({}, None),
])  # fmt: skip
def test_where_no_block_can_be_skipped(changes, reason):
    given = {"family": WAN, "compiled": False, "whole": None, **changes}
    forward = Forward(given["family"], "no layout", 1, whole=given["whole"])
    model = SimpleNamespace(blocks=[torch.nn.Identity()])
    step = SimpleNamespace(forward=forward, compiled=given["compiled"], model=model, shapes=((1, 16, 3, 8, 12),))
    for site in BLOCK_SITES:
        assert sites.SITES[site].why_not(step) == reason
    assert sites.SITES["output"].why_not(step) is None


def test_frame_by_frame_generation_skips_no_block():
    found = WAN.unskippable(Inputs(None, (1, 16, 3, 8, 12), 7, options={"ar_state": {}}))
    assert found == "the model generates frame by frame from a key cache that every block fills"
    assert WAN.unskippable(Inputs(None, (1, 16, 3, 8, 12), 7)) is None


def test_the_preset_falls_back_to_the_output_and_says_so(comfy, monkeypatch):
    from interspatial.models.cache import step_cache

    tiny = BY_NAME["hunyuan_video"]
    preset = step_cache.preset_of
    monkeypatch.setattr(step_cache, "preset_of", lambda *args: _at(preset(*args), "modules"))
    model = attached(tiny.model(), StepCache(TaylorSeer(1), Fixed(2), 2, 0))
    with block_runs(tiny.model()) as forwards:
        sample(model, tiny, steps=4)
    assert len(forwards) == 3
    assert "put back at output, not modules: attention and feed-forward of hunyuan_video" in report(model)


def _at(preset, site: str):
    from dataclasses import replace

    return replace(preset, site=site)


def test_the_batch_comes_first_wherever_the_model_has_it(comfy):
    """Cosmos 1 carries T H W B D."""
    tiny, seen = BY_NAME["cosmos"], []

    class Look:
        def why_not(self, step):
            return None

        def evaluate(self, step):
            def visit(index, streams, run):
                out = run(*streams)
                seen.extend([*streams, *out])
                return out

            with visiting_blocks(step.model, step.forward.family, visit):
                return step.proceed()

    plain = sample(tiny.model(), tiny, batch=2)
    assert torch.equal(sample(attached(tiny.model(), Look(), "measure"), tiny, batch=2), plain)
    assert {tuple(x.shape) for x in seen} == {(2, 3, 4, 6, 128)}
