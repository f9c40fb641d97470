"""Bodies on tiny models of all supported families: where the adapter adds, when it stands aside, with whom it works."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interspatial.models.control.adapter_visit import video_part
from interspatial.models.control.body import together
from interspatial.models.control.camera import CameraPath
from interspatial.models.control.clip_fit import Fit
from interspatial.models.layout import arrange
from interspatial.models.report import Card
from interspatial.models.schedule import StepWindow
from interspatial.tests.models.control.made import (
    Held,
    config_for,
    controlled,
    hold,
    random_body,
    random_network,
    untrained_network,
)
from interspatial.tests.models.tinies import BY_NAME, Tiny, sample

NAMES = ("wan", "wan_odd", "wan_i2v", "wan_fun_reference", "wan_phantom", "wan_vace", "wan_5b", "hunyuan_video",
         "hunyuan_video_masked", "hunyuan_video_15", "cogvideox", "cogvideox_i2v", "ltxv", "ltxv_guided", "ltxav",
         "cosmos", "cosmos_predict2", "kandinsky5")  # fmt: skip
LAYERS = {"hunyuan_video": (0, 2), "hunyuan_video_15": (0, 2)}
WAN = BY_NAME["wan"]


def config_of(tiny: Tiny, **others):
    from interspatial.models.host import family_of_model

    family = family_of_model(tiny.model())
    return config_for(tiny.family, LAYERS.get(tiny.family, (0, 1)), temporal_stride=family.temporal_stride,
                      **others)  # fmt: skip


def report(model) -> str:
    from interspatial.models import host

    return host.report_of(model).splitlines()[0]


@pytest.fixture(scope="module")
def plain(comfy):
    """The render without control, once for each tiny model."""
    found: dict[str, torch.Tensor] = {}

    def of(tiny: Tiny) -> torch.Tensor:
        if tiny.name not in found:
            found[tiny.name] = sample(tiny.model(), tiny)
        return found[tiny.name]

    return of


@pytest.fixture(scope="module")
def wan_adapter(comfy):
    return Held(random_network(config_of(WAN)))


@pytest.mark.parametrize("name", NAMES)
def test_3_untrained_or_without_strength_it_is_bit_equal(plain, name):
    tiny = BY_NAME[name]
    adapter = Held(untrained_network(config_of(tiny)))
    model = controlled(tiny.model(), adapter, strength=1.7)
    assert torch.equal(sample(model, tiny), plain(tiny))
    assert report(model).startswith("control 2/2 steps"), report(model)
    model = controlled(tiny.model(), Held(random_network(config_of(tiny))), strength=0.0)
    assert torch.equal(sample(model, tiny), plain(tiny))
    assert report(model).startswith("control 0/2 steps, unpatched: strength is 0 (2)")


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_one_changes_the_video(plain, name):
    tiny = BY_NAME[name]
    adapter = Held(random_network(config_of(tiny)))
    found = sample(controlled(tiny.model(), adapter), tiny)
    assert found.isfinite().all()
    assert not torch.allclose(found, plain(tiny), atol=1e-3)
    other = sample(controlled(tiny.model(), adapter, random_body(seed=1)), tiny)
    assert not torch.allclose(found, other, atol=1e-4), "another body gives another video"


def streams_behind(model, tiny: Tiny) -> list:
    """The streams behind each block of a run's first evaluation, flat [1, N, D], the video's stream first."""
    from interspatial.models import host
    from interspatial.models.block_visits import visiting_blocks

    class Watch:
        def why_not(self, step):
            return None

        def evaluate(self, step):
            def visit(index, streams, run):
                out = run(*streams)
                for stream in out:
                    parts = stream if isinstance(stream, tuple) else (stream,)
                    found.append([x.flatten(1, -2).clone() for x in parts])
                return out

            with visiting_blocks(step.model, step.forward.family, visit):
                return step.proceed()

    found: list = []
    sample(host.attach_step(model, Card("watch", "cache"), Watch()), tiny, steps=1)
    return [x for parts in found for x in parts]


@pytest.mark.parametrize("name", NAMES)
def test_7_only_video_tokens_change(plain, name):
    """At the last block nothing comes behind that could mix: text, sound, and reference tokens stay as they were."""
    tiny = BY_NAME[name]
    config = config_of(tiny)
    last = max(config.layers)
    adapter = Held(random_network(replace(config, layers=(last,))))
    before = streams_behind(tiny.model(), tiny)
    after = streams_behind(controlled(tiny.model(), adapter), tiny)
    layout = arrange(tiny.segments)
    changed = 0
    for a, b in zip(before, after, strict=True):
        rows = (a != b).any(-1)[0]
        part = video_part(a.shape[1], layout)
        if part is not None:
            changed += int(rows[part].sum())
            rows[part] = False
        assert not rows.any()
    assert changed == layout.grid[0] * layout.frame_tokens, "and all of the video's do, once"


def test_where_the_video_lies_in_a_stream():
    layout = arrange([("reference", 9), ("text", 7), ("reference", 24), ("video", (2, 3, 4))])
    assert video_part(64, layout) == slice(40, 64)
    assert video_part(48, layout) == slice(24, 48), "text flows by itself"
    assert video_part(24, layout) == slice(0, 24)
    assert video_part(16, layout) is None
    behind = arrange([("video", (2, 3, 4)), ("text", 7), ("reference", 5)])
    assert video_part(31, behind) == slice(0, 24)


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "ltxv"])
def test_8_prompts_together_or_alone_give_the_same(comfy, monkeypatch, name):
    from comfy.model_patcher import ModelPatcher

    tiny, sizes = BY_NAME[name], []
    model = controlled(tiny.model(), Held(random_network(config_of(tiny))))
    found = {}
    for free in (1 << 40, 0):
        monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device, free=free: free)
        found[free] = sample(watched(model, sizes), tiny, steps=1, cfg=3.0)
    assert sizes == [2, 1, 1]
    torch.testing.assert_close(*found.values(), rtol=1e-4, atol=1e-5)


def watched(model, sizes: list):
    """A clone that notes the batch of each evaluation."""
    from interspatial.models import host

    class Watch:
        def why_not(self, step) -> str:
            sizes.append(step.x.shape[0])
            return "only looks"

    return host.attach_step(model, Card("batch", "measure"), Watch())


def test_dropped_rows_get_nothing(comfy, wan_adapter):
    """With cfg 0 the output is the negative prompt's alone."""
    plain = sample(WAN.model(), WAN, cfg=0.0)
    model = controlled(WAN.model(), wan_adapter, uncond="drop")
    assert torch.equal(sample(model, WAN, cfg=0.0), plain)
    assert not torch.allclose(sample(controlled(WAN.model(), wan_adapter), WAN, cfg=0.0), plain, atol=1e-3)


def test_outside_its_percents_it_stands_aside(comfy, wan_adapter):
    model = controlled(WAN.model(), wan_adapter, when=StepWindow(0.0, 0.3))
    sample(model, WAN, steps=4)
    assert "2/4 steps" in report(model)
    assert "outside the percent window (2)" in report(model)


def test_chosen_layers_alone_add(comfy, wan_adapter):
    all_of_them = sample(controlled(WAN.model(), wan_adapter), WAN)
    assert torch.equal(sample(controlled(WAN.model(), wan_adapter, layers=(0, 1, 7)), WAN), all_of_them)
    assert not torch.equal(sample(controlled(WAN.model(), wan_adapter, layers=(1,)), WAN), all_of_them)
    model = controlled(WAN.model(), wan_adapter, layers=(5,))
    sample(model, WAN)
    assert "none of the chosen layers has an adapter" in report(model)


@pytest.mark.parametrize(("others", "says"), [
    ({"family": "ltxv"}, "the adapter is for ltxv, and this model is wan"),
    ({"host_width": 64}, "the adapter is for 64 channels, and this model has 128"),
    ({"layers": (0, 9)}, "the adapter is for a model with more blocks"),
    ({"temporal_stride": 8}, "latent frames that hold another number of pixel frames")])  # fmt: skip
def test_adapters_of_other_models_stand_aside(plain, others, says):
    adapter = Held(random_network(replace(config_of(WAN), **others)))
    model = controlled(WAN.model(), adapter)
    assert torch.equal(sample(model, WAN), plain(WAN))
    assert says in report(model)


def test_models_with_several_latent_frames_a_token_stand_aside(plain):
    tiny = BY_NAME["cogvideox_15_odd"]
    model = controlled(tiny.model(), Held(random_network(config_of(tiny))))
    assert torch.equal(sample(model, tiny), plain(tiny))
    assert "the model holds several latent frames in one token (2)" in report(model)


def test_compiled_models_stand_aside(plain, wan_adapter):
    from comfy.patcher_extension import WrappersMP

    model = controlled(WAN.model(), wan_adapter)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda run, *args, **kw: run(*args, **kw))
    assert torch.equal(sample(model, WAN), plain(WAN))
    assert "the model is compiled" in report(model)


def test_bodies_out_of_view_stand_aside(plain, wan_adapter):
    body = random_body()
    behind = replace(body, points=body.points + torch.tensor([0.0, 0.0, 50.0]))
    model = controlled(WAN.model(), wan_adapter, behind)
    assert torch.equal(sample(model, WAN), plain(WAN))
    assert "no point of the body is in the camera's view (2)" in report(model)


@pytest.mark.parametrize(("frames", "fit", "says"), [
    (9, Fit(), None), (11, Fit("trim"), None), (5, Fit("trim"), "5 frames to 9, the last one held"),
    (21, Fit("stretch"), "21 frames to 9, stretched"), (21, Fit("trim"), "21 frames to 9, trimmed"),
    (9, Fit("trim", 8.0), "9 frames to 9, the last one held, 16 a second brought to 8")])
def test_bodies_of_another_length_are_fitted(comfy, wan_adapter, frames, fit, says):
    model = controlled(WAN.model(), wan_adapter, random_body(frames=frames), hold(frames), fit=fit)
    assert sample(model, WAN, steps=1).isfinite().all()
    assert (f"body {says}" in report(model)) if says else "body " not in report(model)[8:]


def test_a_picture_of_another_shape_is_said(comfy, wan_adapter):
    model = controlled(WAN.model(), wan_adapter, camera=hold(9, 64, 64))
    sample(model, WAN, steps=1)
    assert "picture of another shape than the camera's" in report(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_in_half_precision(comfy, wan_adapter, dtype):
    whole = sample(controlled(WAN.model(), wan_adapter), WAN, steps=1)
    half = Held(random_network(config_of(WAN)).to(dtype), dtype)
    found = sample(controlled(WAN.model(), half), WAN, steps=1)
    plain = sample(WAN.model(), WAN, steps=1)
    assert (found - whole).norm() < 0.1 * (whole - plain).norm()


def test_two_adapters_on_one_model_both_add(comfy, wan_adapter):
    other = Held(random_network(config_of(WAN), seed=3))
    both = controlled(controlled(WAN.model(), wan_adapter), other)
    found = sample(both, WAN)
    for one in (wan_adapter, other):
        assert not torch.allclose(found, sample(controlled(WAN.model(), one), WAN), atol=1e-3)


def test_state_ends_with_the_run(comfy, wan_adapter):
    """A second run of the same model is the first, and another body in between leaves nothing."""
    model = controlled(WAN.model(), wan_adapter)
    first = sample(model, WAN)
    sample(controlled(WAN.model(), wan_adapter, random_body(seed=4)), WAN)
    assert torch.equal(sample(model, WAN), first)


def test_people_in_either_order_give_the_same_but_for_their_slots(comfy):
    network = random_network(config_of(WAN))
    network.points.person.weight.zero_()
    one, two = random_body(1, seed=1), replace(random_body(1, seed=2), part=random_body(1, seed=1).part)
    camera: CameraPath = hold()
    # contents are measured from the first person, so that one is the same in both orders
    three = replace(two, points=two.points + 0.1)
    found = [sample(controlled(WAN.model(), Held(network), together([one, *others]), camera), WAN)
             for others in ((two, three), (three, two))]  # fmt: skip
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
