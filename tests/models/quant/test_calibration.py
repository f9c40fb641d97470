"""Statistics of activations: what is summed, what a run of a model gives, the file, and the mask that comes of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from interspatial.models.quant.basis import Basis
from interspatial.models.quant.calibration import MARK, Calibration, packed_gram, unpacked_gram
from interspatial.models.quant.stats import LayerStats
from interspatial.models.quant.vidit_q import channel_mask
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture
def watch(comfy):
    """The module under test; it knows the host."""
    from interspatial.models.quant import watch

    return watch


@pytest.fixture
def tiny(comfy):
    from interspatial.tests.models.tinies import BY_NAME

    return BY_NAME["wan_odd"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gathered(watch, calls, bins=3, gram=True):
    """Sums of (x, bin)."""
    sums = watch.LayerSums.empty(bins, calls[0][0].shape[-1], gram, torch.device("cpu"))
    for at, (x, number) in enumerate(calls):
        sums.add(x, number, at)
    return sums


SHAPES = [(2, 7, 5), (1, 33), (3, 1, 1), (4, 2, 3, 48)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_are_those_of_all_tokens(watch, poisoned, monkeypatch, shape, dtype):
    monkeypatch.setattr(watch, "PART", 2 * shape[-1] + 1)  # two tokens at a time, the last part short
    calls = [(noise(*shape, seed=i).mul(10.0**i).to(dtype), number) for i, number in enumerate((0, 2, 2))]
    stats = gathered(watch, calls).stats()
    for number, part in ((0, calls[:1]), (2, calls[1:])):
        rows = torch.cat([x.double().reshape(-1, shape[-1]) for x, _ in part])
        torch.testing.assert_close(stats.peak[number].double(), rows.abs().amax(0), rtol=1e-7, atol=0)
        torch.testing.assert_close(stats.power[number].double(), rows.square().mean(0), rtol=1e-5, atol=1e-12)
    rows = torch.cat([x.double().reshape(-1, shape[-1]) for x, _ in calls])
    torch.testing.assert_close(stats.gram.double(), rows.t() @ rows / len(rows), rtol=1e-4, atol=1e-4)
    assert stats.peak.dtype == stats.power.dtype == stats.gram.dtype == torch.float32


def test_tokens_count_alike_however_they_were_batched(watch):
    x = noise(3, 10, 8)
    whole, apart = gathered(watch, [(x, 0)]), gathered(watch, [(x[:1, :4], 0), (x[:1, 4:], 0), (x[1:], 0)])
    for name in ("peak", "power", "gram"):
        a, b = (getattr(sums.stats(), name) for sums in (whole, apart))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_part_of_the_range_without_steps_has_the_values_of_the_nearest(watch):
    stats = gathered(watch, [(noise(5, 4), 1), (9 * noise(5, 4), 4)], bins=6).stats()
    assert [torch.equal(stats.peak[i], stats.peak[1]) for i in range(6)] == [True, True, True, False, False, False]
    assert all(torch.equal(stats.power[i], stats.power[4]) for i in (3, 5))


def test_products_of_long_calls_take_other_tokens_each_time(watch, monkeypatch):
    monkeypatch.setattr(watch, "GRAM_ROWS", 4)
    x = noise(10, 6)
    sums = gathered(watch, [(x, 0)] * 3)
    assert sums.rows == 10, "in three calls every token came once"
    torch.testing.assert_close(sums.stats().gram, x.t() @ x / 10, rtol=1e-5, atol=1e-6)


def test_summing_waits_for_no_device(watch):
    """Fake tensors have no values, so whatever asks for one fails."""
    with FakeTensorMode():
        sums = gathered(watch, [(torch.empty(2, 7, 5, dtype=torch.bfloat16), 1)] * 2)
    assert sums.tokens == [0, 28, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_the_first_that_is_not_finite_is_named(watch, value):
    """Of the layers of one evaluation the first to run; what comes after it only follows."""
    findings = watch.Findings(1)
    findings.begin({"a": 6, "b": 6, "c": 6}, (1.0, 0.5, 0.0))
    for step in range(3):
        findings.evaluations.append((1, step + 1))
        for layer in "cba":
            x = noise(4, 6)
            if step == 2 or (step == 1 and layer in "ba"):
                x[2, 3] = value
            findings.add(layer, x, 0)
    with pytest.raises(ValueError, match=r"enters layer b is not finite, or its square is not, in step 2 of run 1\."):
        findings.calibration()


def test_parts_of_two_devices_are_joined(watch):
    calls = [(noise(5, 4, seed=i), i) for i in range(3)]
    whole, joined = gathered(watch, calls), gathered(watch, calls[:1]).merged(gathered(watch, calls[1:]))
    assert joined.tokens == whole.tokens and joined.calls == 3
    for name in ("peak", "power", "gram"):
        torch.testing.assert_close(getattr(joined.stats(), name), getattr(whole.stats(), name))


def test_products_take_from_a_budget_in_the_order_of_blocks(watch, monkeypatch):
    monkeypatch.setattr(watch, "GRAM_MOST", 16)
    findings = watch.Findings(1, gram_bytes=4 * (16**2 + 8**2))
    findings.begin({"a": 32, "b": 16, "c": 9, "d": 8}, (1.0, 0.0))
    for layer, inputs in findings.layers.items():
        findings.add(layer, noise(3, inputs), 0)
    assert [stats.gram is not None for stats in findings.calibration().layers.values()] == [False, True, False, True]


def watched(watch, tiny, model=None, steps=4, **settings):
    """Findings of a run, its latent, and the model's."""
    from interspatial.models import host
    from interspatial.models.report import Card
    from interspatial.tests.models.tinies import sample

    model = tiny.model() if model is None else model
    findings = watch.Findings(settings.pop("bins", 2), 2**26)
    attached = host.attach_step(model, Card("activations", "measure"), watch.ActivationWatch(findings))
    return findings, sample(attached, tiny, steps=steps, **settings), attached


def test_a_run_is_bit_equal_and_every_layer_is_seen(watch, tiny):
    from interspatial.models.host.quant_trial import linear_layers
    from interspatial.tests.models.tinies import sample

    model = tiny.model()
    findings, out, _ = watched(watch, tiny, model, cfg=3.0)
    assert torch.equal(out, sample(model, tiny, steps=4, cfg=3.0))
    layers = linear_layers(model.get_model_object("diffusion_model"))
    assert all("forward" not in vars(layer) for layer in layers.values()), "nothing stays on the model"
    found = findings.calibration(model="WanModel")
    assert list(found.layers) == list(layers) and found.about["unseen"] == []
    assert all(len(stats.peak) == 2 and stats.gram is not None for stats in found.layers.values())
    assert len(found.about["sigmas"][0]) == 5 and found.about["runs"] == 1


@pytest.mark.parametrize("name", ["hunyuan_video_masked", "ltxav", "minimax_h3", "wan_vace"])
def test_every_layer_of_other_families_is_seen(watch, name):
    from interspatial.tests.models.tinies import BY_NAME

    findings, *_ = watched(watch, BY_NAME[name], steps=2)
    found = findings.calibration()
    assert len(found.layers) >= 8 and found.about["unseen"] == []


def test_both_prompts_and_both_parts_of_the_range_are_counted(watch, tiny):
    """Two of four steps in each half; the tokens of the video, for the positive and the negative prompt."""
    findings, *_ = watched(watch, tiny, cfg=3.0)
    tokens = 2 * 4 * 6
    sums = findings.sums["blocks.0.self_attn.q", torch.device("cpu")]
    assert sums.tokens == [2 * 2 * tokens] * 2
    alone, *_ = watched(watch, tiny, cfg=1.0)
    assert alone.sums["blocks.0.self_attn.q", torch.device("cpu")].tokens == [2 * tokens] * 2


def test_what_was_seen_is_what_came_in(watch, tiny):
    """The largest value of each channel against one that a hook of torch's own has seen."""
    model = tiny.model()
    layer = model.get_model_object("diffusion_model").get_submodule("blocks.1.ffn.0")
    seen = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    findings, *_ = watched(watch, tiny, model)
    hook.remove()
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen])
    assert torch.equal(findings.calibration().layers["blocks.1.ffn.0"].peaks, rows.abs().amax(0).float())


def test_runs_are_joined(watch, tiny):
    from interspatial.models import host
    from interspatial.models.report import Card
    from interspatial.tests.models.tinies import sample

    findings = watch.Findings(1, 2**20)
    model = host.attach_step(tiny.model(), Card("activations", "measure"), watch.ActivationWatch(findings))
    first = sample(model, tiny) is not None and findings.calibration()
    sample(model, tiny, prompts=(tiny.prompt(5), tiny.prompt(6)))
    both = findings.calibration()
    assert both.about["runs"] == 2 and both.about["tokens"] == [2 * first.about["tokens"][0]]
    for layer, stats in both.layers.items():
        assert (stats.peaks >= first.layers[layer].peaks).all()
    assert any(not torch.equal(stats.gram, first.layers[layer].gram) for layer, stats in both.layers.items())


def test_an_interrupted_run_leaves_the_model_as_it_was(watch, tiny):
    from interspatial.models import host
    from interspatial.models.report import Card
    from interspatial.tests.models.tinies import sample

    def stop():
        raise InterruptedError

    model = tiny.model()
    attached = host.attach_step(model, Card("activations", "measure"), watch.ActivationWatch(watch.Findings(), stop))
    with pytest.raises(InterruptedError):
        sample(attached, tiny)
    modules = model.get_model_object("diffusion_model").modules()
    assert all("forward" not in vars(module) for module in modules)


def test_nothing_seen_is_an_error(watch):
    with pytest.raises(ValueError, match="no linear layer in a block of the model was seen"):
        watch.Findings().calibration()


def test_layers_that_never_ran_are_named(watch):
    findings = watch.Findings(1)
    findings.begin({"a": 4, "b": 4}, (1.0, 0.0))
    findings.add("b", noise(3, 4), 0)
    assert findings.calibration().about["unseen"] == ["a"]
    with pytest.raises(ValueError, match="models with different layers"):
        findings.begin({"a": 4}, (1.0, 0.0))


def some(layers=("blocks.0.q", "blocks.1.q"), inputs=9, bins=2, gram=True) -> Calibration:
    found = {}
    for i, layer in enumerate(layers):
        x = noise(40, inputs, seed=i) * noise(inputs, seed=9).exp()
        product = x.t() @ x / len(x) if gram else None
        found[layer] = LayerStats(noise(bins, inputs, seed=i).abs(), noise(bins, inputs, seed=i).square(), product)
    return Calibration(found, {"model": "WanModel", "prompts": 2, "unseen": ["blocks.2.q"]})


@pytest.mark.parametrize("gram", [True, False])
def test_a_file_holds_it_all(tmp_path, gram):
    found = some(gram=gram)
    found.save(path := tmp_path / "new" / "a.safetensors")
    read = Calibration.load(path)
    assert list(read.layers) == list(found.layers) and read.about == found.about and read.bins == 2
    for layer, stats in read.layers.items():
        assert torch.equal(stats.peak, found.layers[layer].peak) and torch.equal(stats.power, found.layers[layer].power)
        if gram:
            goal = found.layers[layer].gram
            assert float((stats.gram - goal).norm() / goal.norm()) < 5e-4
        else:
            assert stats.gram is None
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"], "no part is left"
    read.save(path)
    again = Calibration.load(path)
    for layer, stats in again.layers.items():
        assert gram is False or float((stats.gram - read.layers[layer].gram).abs().max()) < 1e-3


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
    from interspatial.models.quant import calibration

    some().save(path := tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(*args):
        args[1].write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(calibration, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        some(bins=3).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_products_keep_channels_of_very_different_size():
    """Ten powers of ten apart, where float16 by itself has none left; and a channel that is always 0."""
    x = noise(50, 6) * torch.tensor([1e-5, 1e-3, 1.0, 1e3, 1e5, 0.0])
    gram = x.t() @ x / 50
    back = unpacked_gram(*packed_gram(gram))
    scale = gram.diagonal().sqrt()
    torch.testing.assert_close(back / scale.clamp_min(1e-30), gram / scale.clamp_min(1e-30), rtol=1e-3, atol=1e-9)
    assert (back[5] == 0).all() and back.isfinite().all()


def damaged(tmp_path, change) -> str:
    """A file whose tensors and text `change` has changed."""
    some().save(path := tmp_path / "a.safetensors")
    tensors = load_file(path)
    about = {"version": 1, "layers": ["blocks.0.q", "blocks.1.q"], "about": {}}
    metadata = change(tensors, about) or {MARK: json.dumps(about)}
    save_file(tensors, path, metadata)
    return str(path)


BROKEN = {
    "holds no activation statistics": lambda t, a: {"format": "pt"},
    "version 7, this pack reads version 1": lambda t, a: a.update(version=7),
    "holds no layer": lambda t, a: a.update(layers=[]),
    r"blocks\.1\.q\.act_power": lambda t, a: t.pop("blocks.1.q.act_power") is None,
    "act_absmax is not finite": lambda t, a: t["blocks.0.q.act_absmax"].fill_(torch.nan) is None,
    "layer blocks.0.q are below 0": lambda t, a: t["blocks.0.q.act_power"].neg_() is None,
    "act_absmax is torch.float16": lambda t, a: t.update({"blocks.0.q.act_absmax": noise(2, 9).abs().half()}),
    "2 and 3 bins": lambda t, a: t.update({f"blocks.1.q.act_{n}": torch.ones(3, 9) for n in ("absmax", "power")}),
    "where it has 9 inputs": lambda t, a: t.update({"blocks.0.q.act_gram": torch.ones(8, 8).half()}),
    "act_gram_rms is missing|does not contain": lambda t, a: t.pop("blocks.0.q.act_gram_rms") is None,
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_file_that_is_wrong_is_named(tmp_path, said):
    path = damaged(tmp_path, BROKEN[said])
    with pytest.raises(ValueError, match=rf"(?s)activation statistics .*a\.safetensors cannot be used: .*({said})"):
        Calibration.load(path)


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"no safetensors at all" * 9])
def test_a_file_that_is_no_file_is_named(tmp_path, content):
    (path := tmp_path / "cut.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be used: .*calibrate again"):
        Calibration.load(path)


def test_statistics_of_another_model_are_told():
    found = some()
    fits = {"blocks.0.q": (5, 9), "blocks.1.q": (7, 9), "blocks.2.q": (7, 9)}
    assert found.why_not(fits) is None
    assert "hold nothing of layer blocks.7.q" in found.why_not({**fits, "blocks.7.q": (7, 9)})
    assert "with 9 inputs to layer blocks.1.q, which has 12 here" in found.why_not({**fits, "blocks.1.q": (7, 12)})


def four_bits(x: torch.Tensor) -> torch.Tensor:
    step = x.abs().amax(1, keepdim=True) / 7
    return (x / step).round() * step


def output_error(coded, x: torch.Tensor, weight: torch.Tensor) -> float:
    """Relative squared error of the output, with 4-bit activations."""
    from interspatial.models.quant.format import dense

    goal = x.double() @ weight.double().t()
    out = four_bits(coded.basis.activation(x)) @ coded.basis.weight(dense(coded)).t()
    return float((out.double() - goal).square().sum() / goal.square().sum())


@pytest.mark.parametrize(("factor", "count", "gains"), [(10, 8, (4.0, 1.2)), (200, 2, (1.0, 8.0))])
def test_the_mask_takes_what_rotation_leaves_of_planted_channels(factor, count, gains):
    """Few large channels: rotation is better than nothing, mask and rotation better than rotation; by how much at
    least."""
    from interspatial.models.quant.format import FORMATS

    x, weight = noise(256, 512), noise(256, 512, seed=1)
    x[:, :count] *= factor
    stats = LayerStats(x.abs().amax(0)[None], x.square().mean(0)[None])
    form = replace(FORMATS["vidit_q"], alpha=0.5)
    none, turned, both = (output_error(coded, x, weight) for coded in (
        FORMATS["rtn"].encode(weight, 4), form.encode(weight, 4), form.encode(weight, 4, stats)))
    assert none > gains[0] * turned and turned > gains[1] * both


def test_a_mask_changes_nothing_of_the_product():
    x, weight = noise(20, 64).double(), noise(30, 64, seed=1).double()
    x[:, 3] *= 500
    x[:, 7] = 0
    mask = channel_mask(weight, x.abs().amax(0), 0.5665)
    basis = Basis(64, mask)
    torch.testing.assert_close(basis.activation(x) @ basis.weight(weight).t(), x @ weight.t(), rtol=1e-5, atol=1e-5)
    assert mask.dtype == torch.float32 and (mask > 0).all() and abs(float(mask.log().mean())) < 1e-5
