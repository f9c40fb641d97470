"""Reflecting samplers in runs of ComfyUI: what they add, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.guidance import CfgRoles, ModelRoles, PromptRoles, Reflection
from interspatial.models.report import Card
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.guidance.reflected import ALL, EMPTY, TINY, Watch, sample, wrapped
from interspatial.tests.models.probes import attach
from interspatial.tests.models.tinies import BY_NAME


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m_sde", "heun"])
@pytest.mark.parametrize("reflection", [EMPTY, Reflection(strength=0.0)], ids=["window", "strength"])
def test_without_reflection_every_bit_is_the_samplers(comfy, name, reflection):
    model = TINY.model()
    assert torch.equal(sample(model, wrapped(CfgRoles(), reflection, name)), sample(model, name))


def test_number_and_place_of_evaluations(comfy):
    """Roles take the step they serve; guidance 1 leaves the negative prompt out; the last step has no reflection."""
    from interspatial.models import host

    watch = Watch()
    model = host.attach_step(TINY.model(), Card("watch", "measure"), watch)
    sample(model, wrapped(CfgRoles(0.0, 1.0)))
    each = [[("strong", i, 0, 2), ("weak", i, 0, 1), (None, i, 0, 2)] for i in range(2)]
    assert watch.seen == [*each[0], *each[1], (None, 2, 0, 2)]


def test_second_calls_of_a_step_are_placed_as_without_reflection(comfy):
    from interspatial.models import host

    watches = []
    for sampler in (wrapped(CfgRoles(), ALL, "heun"), "heun"):
        watches.append(Watch())
        sample(host.attach_step(TINY.model(), Card("watch", "measure"), watches[-1]), sampler)
    assert [s for s in watches[0].seen if s[0] is None] == watches[1].seen
    assert [s[1] for s in watches[0].seen if s[0] == "strong"] == [0, 1]


@pytest.mark.parametrize("name", ["cogvideox", "ltxav", "hunyuan_video"])
def test_other_models(comfy, name):
    """A model that predicts no velocity of a flow, one of video with sound, one of joint attention."""
    tiny = BY_NAME[name]
    model = tiny.model()
    found, plain = sample(model, wrapped(CfgRoles()), tiny), sample(model, "euler", tiny)
    assert found.isfinite().all() and found.shape == plain.shape
    assert not torch.equal(found, plain)
    again = sample(model, wrapped(CfgRoles(3.0, 3.0)), tiny)
    assert (again - plain).norm() < (found - plain).norm(), "equal parts move by the square of the step only"


def test_masked_places_keep_the_latent(comfy):
    model, latent = TINY.model(), torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., 6:] = 1.0
    found, plain = (sample(model, s, latent=latent, mask=mask) for s in (wrapped(CfgRoles()), "euler"))
    torch.testing.assert_close(found[..., :6], latent[..., :6], rtol=0, atol=1e-5)
    assert not torch.equal(found[..., 6:], plain[..., 6:])


def test_prompts_as_roles(comfy):
    """The run's own prompt on both sides is guidance at its own strength on both sides; another prompt is not."""
    model, own, other = TINY.model(), TINY.prompt(1), TINY.prompt(7)
    equal = sample(model, wrapped(CfgRoles(3.0, 3.0)))
    torch.testing.assert_close(sample(model, wrapped(PromptRoles(own))), equal, rtol=0, atol=1e-5)
    torch.testing.assert_close(sample(model, wrapped(PromptRoles(own, own))), equal, rtol=0, atol=1e-5)
    assert (sample(model, wrapped(PromptRoles(other))) - equal).abs().max() > 1e-3


def test_models_as_roles(comfy):
    """A second MODEL with the same weights is the run's own; with other weights it is not."""
    model = TINY.model()
    equal = sample(model, wrapped(CfgRoles(3.0, 3.0)))
    twin, third, other = (TINY.model.__wrapped__() for _ in range(3))  # built anew
    assert torch.equal(sample(model, wrapped(ModelRoles(twin))), equal)
    assert torch.equal(sample(model, wrapped(ModelRoles(twin, third))), equal)
    with torch.no_grad():
        for p in other.model.diffusion_model.parameters():
            p.mul_(1.1)
    assert (sample(model, wrapped(ModelRoles(other))) - equal).abs().max() > 1e-3
    assert torch.equal(sample(model, wrapped(CfgRoles(3.0, 3.0))), equal), "the run's own model is as it was"


@pytest.mark.parametrize(("roles", "reason"), [
    (lambda model: ModelRoles(model.clone()), "load it twice"),
    (lambda model: PromptRoles([[torch.zeros(1, 7, 32), {"control": object()}]]), "carries control"),
])  # fmt: skip
def test_what_cannot_be_evaluated_leaves_the_run_alone(comfy, caplog, roles, reason):
    model = TINY.model()
    with caplog.at_level("INFO", "interspatial"):
        assert torch.equal(sample(model, wrapped(roles(model))), sample(model, "euler"))
    assert reason in caplog.text


def test_cost_is_told_when_sampling_starts(comfy, caplog):
    with caplog.at_level("INFO", "interspatial"):
        sample(TINY.model(), wrapped(CfgRoles()))
    assert "2 of 3 steps reflected: 12 model evaluations in place of 6 (2.00 x), as many as 6 plain" in caplog.text


def test_core_caches_are_seen(comfy, caplog):
    from comfy_extras.nodes_easycache import EasyCacheNode

    model = EasyCacheNode.execute(TINY.model(), 0.2, 0.0, 1.0, False).result[0]
    with caplog.at_level("INFO", "interspatial"):
        assert torch.equal(sample(model, wrapped(CfgRoles())), sample(model, "euler"))
    assert "EasyCache" in caplog.text


def test_a_step_cache_runs_reflected_steps_in_full(comfy):
    """The pack's own caches keep the parts apart: no step that is reflected is forecast, and its parts never are."""
    from interspatial.models import host
    from interspatial.models.cache import CACHES, StepCache
    from interspatial.models.cache.pace import Fixed

    ran = []

    class Count(Watch):
        def why_not(self, step):
            ran.append((step.role, step.forward.position.step))
            return "only watches"

    cache = StepCache(CACHES["taylorseer"](), Fixed(3), first=1, last=1)
    model = host.attach_step(TINY.model(), Card("cache", "cache"), cache)
    model = host.attach_step(model, Card("watch", "quant"), Count())
    sample(model, "euler", steps=8, cfg=1.0)
    plain = [step for role, step in ran]
    ran.clear()
    sample(model, wrapped(CfgRoles(), Reflection(StepWindow(0.0, 0.4))), steps=8, cfg=1.0)
    reflected = [step for role, step in ran if role == "strong"]
    assert reflected == [step for role, step in ran if role == "weak"] and len(reflected) > 2
    own = [step for role, step in ran if role is None]
    assert set(reflected) <= set(own) and not set(reflected) <= set(plain)
    assert len(own) < 8, "behind the window it forecasts again"


def test_the_interrupt_passes(comfy):
    import comfy.model_management as management

    class Interrupt(Watch):
        def why_not(self, step):
            if step.role == "strong":
                management.interrupt_current_processing()
            return super().why_not(step)

    from interspatial.models import host

    watch = Interrupt()
    model = host.attach_step(TINY.model(), Card("watch", "measure"), watch)
    with pytest.raises(management.InterruptProcessingException):
        sample(model, wrapped(CfgRoles()))
    assert [seen[0] for seen in watch.seen] == ["strong"], "the weak part is not evaluated any more"


def test_attention_patches_work_in_all_parts(comfy):
    """Three evaluations of the run and two for each of two reflections, in two layers."""
    trace: list = []
    model = attach(TINY.model(), "ours", "sparse", trace)
    sample(model, wrapped(CfgRoles()), cfg=1.0)
    assert len(trace) == (3 + 2 * 2) * 2


def test_context_windows_are_kept_in_all_parts(comfy):
    import comfy.context_windows as windows
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode
    from interspatial.models import host

    model = ContextWindowsManualNode.execute(
        TINY.model(), 4, 1, windows.ContextSchedules.STATIC_STANDARD, 1, False, windows.ContextFuseMethods.PYRAMID, 2,
        False).result[0]
    watch = Watch()
    latent = torch.zeros(1, 16, 9, 8, 8)
    model = host.attach_step(model, Card("watch", "measure"), watch)
    assert sample(model, wrapped(CfgRoles()), steps=2, latent=latent).isfinite().all()
    order = (("strong", 0), ("weak", 0), (None, 0), (None, 1))
    assert [seen[:2] for seen in watch.seen] == [place for place in order for _ in range(3)], "three windows each"
