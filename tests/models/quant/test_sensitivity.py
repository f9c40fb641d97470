"""What each layer's rounding does to the output: parts of an error, runs of a tiny model, and what is predicted."""

from __future__ import annotations

import pytest
import torch
from interspatial.models.quant.format import FORMATS
from interspatial.models.quant.recipe import Choice
from interspatial.models.quant.stats import LayerStats
from interspatial.models.report import Card
from interspatial.tests.models.tinies import BY_NAME, noise, sample

TINY = BY_NAME["wan"]
FOUR, THREE, EIGHT = Choice("lrq", 4), Choice("lrq", 3), Choice("vidit_q", 8)


@pytest.fixture
def module(comfy):
    """The module under test; it imports ComfyUI."""
    from interspatial.models.quant import sensitivity

    return sensitivity


@pytest.fixture
def layers(module):
    from interspatial.models.host.quant_trial import linear_layers

    return linear_layers(TINY.model().model.diffusion_model)


def run(module, trials, prompts=None, model=None, steps=4, **settings):
    """Findings of a run, its output and the report."""
    from interspatial.models import host

    found = module.Findings()
    method = module.Sensitivity(trials, found, **settings)
    watched = host.attach_step(model or TINY.model(), Card("precision", "measure"), method)
    out = sample(watched, TINY, steps=steps, cfg=3.0, prompts=prompts)
    return found, out, host.report_of(watched)


def shorter() -> tuple:
    """Prompts of unequal length, which ComfyUI evaluates one after the other."""
    return TINY.prompt(1), TINY.prompt(2, tokens=5)


def test_each_part_is_blind_to_the_other_two(module):
    shape = (2, 3, 5, 4, 6)
    a, b = noise(*shape, seed=1), noise(*shape, seed=2)
    still = noise(2, 3, 1, 4, 6, seed=3).expand(shape)
    moves = noise(*shape, seed=4) - noise(*shape, seed=4).mean(2, keepdim=True)
    base = module.decoupled(a, b)
    names = {"content": module.decoupled(a + still, b + still), "motion": module.decoupled(a + moves, b + moves),
             "text": module.decoupled(a + still + moves, b - still - moves)}  # fmt: skip
    for name, found in names.items():
        for m, metric in enumerate(module.METRICS):
            equal = torch.allclose(found[m], base[m], rtol=1e-4)
            assert equal == (metric != name), (name, metric)
    assert module.decoupled(a, None)[2] == 0


def test_the_parts_in_closed_form(module):
    """A ramp of slope s over T frames: mean s (T - 1) / 2, differences s; prompts that differ by d."""
    t = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 3, 4, 5, 6)
    found = module.decoupled(0.5 * t + 1.0, 0.5 * t - 1.0)
    places = 2 * 3 * 5 * 6
    assert found.tolist() == pytest.approx([places * 0.75**2, places * 3 * 0.25, places * 4 * 4.0])


def test_the_run_is_not_changed(module, layers):
    trials = module.trials_of(layers, "module", dict.fromkeys(layers, FOUR))
    found, out, report = run(module, trials, choices={})
    assert torch.equal(out, sample(TINY.model(), TINY, steps=4, cfg=3.0))
    assert found.calls == 4 and found.seen == (True, True, True) and "4/4 steps" in report
    assert all("forward" not in vars(layer) for layer in layers.values())


def test_prompts_together_or_apart_are_the_same(module, layers, monkeypatch):
    from interspatial.models.host import hooks

    trials = module.trials_of(list(layers)[:3], "layer", dict.fromkeys(layers, THREE))
    rows: list = []
    plain = hooks._branches

    def branches(*args):
        rows.append(plain(*args))
        return rows[-1]

    monkeypatch.setattr(hooks, "_branches", branches)
    together, *_ = run(module, trials, steps=2)
    assert {len(x) for x in rows} == {2}
    rows.clear()
    import comfy.samplers

    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    apart, *_ = run(module, trials, steps=2)
    assert {len(x) for x in rows} == {1}
    assert together.calls == apart.calls == 2
    for trial in trials:
        torch.testing.assert_close(apart.relative(trial.name), together.relative(trial.name), rtol=2e-3, atol=0)


def test_unequal_prompts(module, layers):
    trials = module.trials_of(list(layers)[:2], "layer", dict.fromkeys(layers, THREE))
    found, out, _ = run(module, trials, shorter(), steps=2)
    assert found.calls == 2 and all((found.relative(trial.name) > 0).all() for trial in trials)
    assert torch.equal(out, sample(TINY.model(), TINY, steps=2, cfg=3.0, prompts=shorter()))


def test_without_guidance_text_is_not_seen(module, layers):
    from interspatial.models import host

    found = module.Findings()
    trials = module.trials_of(list(layers)[:1], "layer", dict.fromkeys(layers, THREE))
    method = module.Sensitivity(trials, found, guided=False)
    sample(host.attach_step(TINY.model(), Card("precision", "measure"), method), TINY, steps=2)
    assert found.seen == (True, True, False)
    relative = found.relative(trials[0].name)
    assert relative[2] == 0 and relative[0] > 0


def test_the_error_is_that_of_the_decoded_weight(module, layers):
    """One evaluation by hand: the layer's weight replaced by what its codes decode to."""
    from interspatial.models.quant.format import dense

    name = "blocks.1.ffn.0"
    found, *_ = run(module, module.trials_of([name], "layer", {name: THREE}), steps=1)
    outputs: list = []

    class Keep:
        def why_not(self, step):
            return None

        def evaluate(self, step):
            outputs.append(step.proceed())
            return outputs[-1]

    from interspatial.models import host

    model = host.attach_step(TINY.model(), Card("keep", "measure"), Keep())
    sample(model, TINY, steps=1, cfg=3.0)
    weight = layers[name].weight
    before = weight.detach().clone()
    try:
        weight.data.copy_(dense(FORMATS["lrq"].encode(before.float(), 3)))
        sample(model, TINY, steps=1, cfg=3.0)
    finally:
        weight.data.copy_(before)
    (negative, positive), (other_negative, other_positive) = (out.chunk(2) for out in outputs)
    error = module.decoupled(other_positive - positive, other_negative - negative)
    energy = module.decoupled(positive, negative)
    torch.testing.assert_close(found.relative(name).float(), error / energy, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("detail", "count"), [("layer", 20), ("module", 6), ("role", 10)])
def test_what_is_tried_together(module, layers, detail, count):
    trials = module.trials_of(layers, detail, dict.fromkeys(layers, FOUR))
    assert len(trials) == count
    assert sorted(layer for trial in trials for layer in trial.layers) == sorted(layers)


def test_layers_that_were_tried_together_share_by_their_weight_errors(module):
    trial = module.Trial("a", {"a": FOUR, "b": FOUR})
    found = module.Findings(
        energy=torch.tensor([9.0, 9.0, 0.0], dtype=torch.float64), calls=2,
        errors={"a": torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)},
        weights={("a", FOUR): 0.01, ("b", FOUR): 0.03, ("a", EIGHT): 0.0001, ("b", EIGHT): 0.0001},
    )  # fmt: skip
    table = module.predicted(found, [trial], {"a": (FOUR, EIGHT), "b": (FOUR, EIGHT)})
    assert table["a"][FOUR] == pytest.approx((0.125, 0.0625, 0.0))
    assert table["b"][FOUR] == pytest.approx((0.375, 0.1875, 0.0))
    assert table["b"][EIGHT] == pytest.approx((0.00125, 0.000625, 0.0))


def test_outputs_that_are_not_finite_are_refused(module):
    trial, weights = module.Trial("a", {"a": FOUR}), {("a", FOUR): 0.01}
    good, bad = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, torch.nan, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="output is not finite with a in few bits"):
        module.predicted(module.Findings(good, {"a": bad}, weights), [trial], {"a": (FOUR,)})
    with pytest.raises(ValueError, match="own output is not finite"):
        module.predicted(module.Findings(bad, {"a": good}, weights), [trial], {"a": (FOUR,)})


def test_weight_errors_count_channels_by_their_power(module):
    weight = noise(16, 64)
    coded = FORMATS["rtn"].encode(weight, 3)
    from interspatial.models.quant.format import dense

    power = torch.rand(2, 64)
    error = (dense(coded) - weight).double().square()
    want = (error @ power.mean(0).double()).sum() / (weight.double().square() @ power.mean(0).double()).sum()
    assert module.weight_error(weight, coded, LayerStats(power, power)) == pytest.approx(float(want), rel=1e-4)
    plain = error.sum() / weight.double().square().sum()
    assert module.weight_error(weight, coded, None) == pytest.approx(float(plain), rel=1e-4)


def test_rows_of_large_weights_stand_for_all(module, layers, monkeypatch):
    names = list(layers)[:2]
    trials = module.trials_of(names, "layer", dict.fromkeys(names, FOUR))
    choices = dict.fromkeys(names, (FOUR, THREE))
    whole, *_ = run(module, trials, steps=1, choices=choices)
    monkeypatch.setattr(module, "SAMPLE", 2**12)
    part, *_ = run(module, trials, steps=1, choices=choices)
    for key, error in whole.weights.items():
        assert part.weights[key] == pytest.approx(error, rel=0.1) and part.weights[key] != error
    assert torch.equal(part.errors[names[0]], whole.errors[names[0]]), "what is tried is the whole weight"


def test_steps_and_layers_that_can_be_tried(module):
    assert module.measured_steps(4, 20) == (2, 7, 12, 17) and module.measured_steps(4, 2) == (0, 1)
    shapes = {"good": (64, 256), "odd": (64, 24)}
    found = module.usable(shapes, (EIGHT, Choice("rtn", 4)))
    assert found == {"good": (EIGHT, Choice("rtn", 4)), "odd": (Choice("rtn", 4),)}
    assert module.usable(shapes, (EIGHT,)) == {"good": (EIGHT,)}
    assert module.probe_of((EIGHT, THREE, FOUR)) == THREE and module.probe_of((EIGHT, FOUR)) == FOUR


def test_the_video_of_a_packed_latent(module):
    video, sound = noise(2, 3, 4, 5, 6), noise(2, 7)
    packed = torch.cat((video.flatten(1), sound), 1).unsqueeze(1)
    assert torch.equal(module.video_of(packed, ((2, 3, 4, 5, 6), (2, 7))), video)
    assert module.video_of(noise(2, 3, 5, 6), ((2, 3, 5, 6),)).shape == (2, 3, 1, 5, 6)


def test_the_user_can_end_it(module, layers):
    def stop():
        raise KeyboardInterrupt

    trials = module.trials_of(list(layers)[:1], "layer", dict.fromkeys(layers, THREE))
    with pytest.raises(KeyboardInterrupt):
        run(module, trials, tick=stop)
    assert all("forward" not in vars(layer) for layer in layers.values())
